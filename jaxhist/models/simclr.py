"""A Simple Framework for Contrastive Learning of Visual Representations.

Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton, 2020. arXiv:2002.05709. Here: the
encoders f, which are residual networks without their last layer, and the head g (section 2.1).
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import UserError
from jaxhist.models.resnet import DEPTHS, Block, Bottleneck, convolution, normalization


class Encoder(nn.Module):
    """h = f(x): a residual network up to the mean over its last images. [B, H, W, C] -> [B, D]

    D is 512 with 18 or 34 layers and 2048 with more.
    """

    depth: int  # 18, 34, 50, 101 or 152
    small: bool = False  # for CIFAR-10 (appendix B.9): first a 3x3 convolution, and no pooling
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        if self.depth not in DEPTHS:
            raise UserError(f"depth {self.depth} is none of {', '.join(map(str, DEPTHS))}")
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        # Not in the paper: where a bottleneck has its stride; as in its code, in the 3x3.
        block = Block if self.depth < 50 else partial(Bottleneck, v1_5=True)
        x = nn.relu(norm()(conv(64, 3)(image) if self.small else conv(64, 7, 2)(image)))
        if not self.small:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(DEPTHS[self.depth]):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                x = block(64 * 2**stage, strides, "B", conv, norm)(x)
        return jnp.mean(x, axis=(1, 2))


class SmallEncoder(nn.Module):
    """Not in the paper: an encoder that two cores train. [B, H, W, C] -> [B, widths[-1]]

    Squares of 2x2 pixels become one, with four times the channels; then 3x3 convolutions with batch
    normalization and ReLU, between which the image is halved.
    """

    widths: tuple[int, ...]
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        if not self.widths:
            raise UserError("widths of an encoder are at least one, not none")
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        x = squares(image)
        x = x.reshape(*x.shape[:3], -1)
        for index, filters in enumerate(self.widths):
            x = squares(x).mean(3) if index > 0 else x
            x = nn.relu(norm()(conv(filters, 3)(x)))
        return jnp.mean(x, axis=(1, 2))


def squares(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / 2, W / 2, 4, C], the pixels of each square of 2x2.

    Raises:
      UserError: the height or the width is odd.
    """
    B, H, W, C = x.shape
    if H % 2 or W % 2:
        raise UserError(f"an image of {H} x {W} pixels cannot be halved; choose fewer widths")
    x = x.reshape(B, H // 2, 2, W // 2, 2, C)
    return jnp.moveaxis(x, 2, 3).reshape(B, H // 2, W // 2, 4, C)


class Head(nn.Module):
    """z = g(h), what is compared: W2 ReLU(W1 h), W h, or h itself (section 4.2). [B, D] -> [B, d]

    z and the second layer are at least float32.
    """

    kind: Literal["nonlinear", "linear", "none"]
    width: int = 128  # d

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        if self.kind == "none":
            return h
        if self.kind == "nonlinear":
            h = nn.relu(nn.Dense(h.shape[-1])(h))
        return nn.Dense(self.width)(h)


class EncoderAndHead(nn.Module):
    """Images [B, H, W, C] -> h and the head's output."""

    encoder: nn.Module
    head: nn.Module

    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        h = self.encoder(image, train=train)
        return h, self.head(h)
