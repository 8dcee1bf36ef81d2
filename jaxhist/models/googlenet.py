"""Going Deeper with Convolutions.

Christian Szegedy, Wei Liu, Yangqing Jia, Pierre Sermanet, Scott Reed, Dragomir Anguelov, Dumitru
Erhan, Vincent Vanhoucke, Andrew Rabinovich, 2014. arXiv:1409.4842. Here: the network for ImageNet
(section 5, table 1), and a small one in its manner.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxhist.convolution import convolve
from jaxhist.models.alexnet import local_response_normalization

# Not in the paper: the initialisation, which it does not give. N(0, 2 / fan_in), truncated, keeps
# the scale of the activations through 22 layers of ReLU without normalization; biases are 0.
initial = nn.initializers.he_normal()


def max_pool(x: jax.Array, strides: int = 1) -> jax.Array:
    """The largest of 3x3 pixels, [B, H, W, C] -> [B, ceil(H / strides), ceil(W / strides), C].

    The values are those of `nn.max_pool` with SAME padding. Rows and then columns are compared as
    shifted images, of which XLA's CPU backend computes the gradient faster: 3 ms instead of 59 for
    [64, 16, 16, 32]. Where pixels are equal they share it.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        (padding,) = lax.padtype_to_pads((size,), (3,), (strides,), "SAME")
        padded = lax.pad(
            x,
            jnp.array(-jnp.inf, x.dtype),
            [(*padding, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)],
        )
        last = (-(-size // strides) - 1) * strides + 1  # one after the window's first place
        shifted = [lax.slice_in_dim(padded, i, i + last, strides, axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
    return x


class Convolution(nn.Module):
    """A square convolution with biases, and ReLU. [B, H, W, C] -> [B, H / s, W / s, filters]."""

    filters: int
    kernel: int
    strides: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.kernel, self.kernel)
        conv = nn.Conv(
            self.filters,
            size,
            self.strides,
            kernel_init=initial,
            dtype=self.dtype,
            conv_general_dilated=convolve,
        )
        return nn.relu(conv(x))


class Widths(NamedTuple):
    """The filters of a module: a line of table 1."""

    one: int  # 1x1
    three_reduce: int  # 1x1 before the 3x3
    three: int
    five_reduce: int  # 1x1 before the 5x5
    five: int
    projection: int  # 1x1 after the pooling


class Inception(nn.Module):
    """Four scales side by side, behind 1x1 convolutions that reduce the channels (Fig. 2b).

    [B, H, W, C] -> [B, H, W, one + three + five + projection].
    """

    widths: Widths
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, width = partial(Convolution, dtype=self.dtype), self.widths
        branches = [
            conv(width.one, 1)(x),
            conv(width.three, 3)(conv(width.three_reduce, 1)(x)),
            conv(width.five, 5)(conv(width.five_reduce, 1)(x)),
            conv(width.projection, 1)(max_pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class NaiveInception(nn.Module):
    """The same without reductions (Fig. 2a): what is pooled goes on with all its channels.

    [B, H, W, C] -> [B, H, W, one + three + five + C].
    """

    widths: Widths  # the reductions and the projection are not used
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, width = partial(Convolution, dtype=self.dtype), self.widths
        branches = [conv(width.one, 1)(x), conv(width.three, 3)(x), conv(width.five, 5)(x)]
        return jnp.concatenate([*branches, max_pool(x)], -1)


def linear(x: jax.Array, classes: int, dtype: Any) -> jax.Array:
    """[B, C] -> logits [B, classes], at least float32. To be called in a compact module."""
    logits = nn.Dense(classes, kernel_init=initial, dtype=dtype)(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class Head(nn.Module):
    """An auxiliary classifier (section 5): average pooling, a 1x1 convolution, a hidden layer,
    dropout of 70 %, a linear layer. [B, H, W, C] -> logits [B, classes]."""

    classes: int
    pool: int = 5  # the side of what is averaged, without padding
    strides: int = 3
    filters: int = 128
    hidden: int = 1024
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.avg_pool(x, (self.pool, self.pool), (self.strides, self.strides))
        x = Convolution(self.filters, 1, dtype=self.dtype)(x)
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=initial, dtype=self.dtype)(x))
        return linear(nn.Dropout(0.7, deterministic=not train)(x), self.classes, self.dtype)


def classify(x: jax.Array, classes: int, dtype: Any, train: bool) -> jax.Array:
    """Global mean, dropout of 40 %, a linear layer: [B, H, W, C] -> logits [B, classes]. To be
    called in a compact module."""
    x = jnp.mean(x, axis=(1, 2))
    return linear(nn.Dropout(0.4, deterministic=not train)(x), classes, dtype)


# Table 1, from 28x28 to 14x14 to 7x7 pixels. Where the second value is True, max pooling follows.
MODULES = {
    "3a": (Widths(64, 96, 128, 16, 32, 32), False),
    "3b": (Widths(128, 128, 192, 32, 96, 64), True),
    "4a": (Widths(192, 96, 208, 16, 48, 64), False),
    "4b": (Widths(160, 112, 224, 24, 64, 64), False),
    "4c": (Widths(128, 128, 256, 24, 64, 64), False),
    "4d": (Widths(112, 144, 288, 32, 64, 64), False),
    "4e": (Widths(256, 160, 320, 32, 128, 128), True),
    "5a": (Widths(256, 160, 320, 32, 128, 128), False),
    "5b": (Widths(384, 192, 384, 48, 128, 128), False),
}


class GoogLeNet(nn.Module):
    """The network for ImageNet (table 1, Fig. 3): 22 layers with parameters.

    Images are [B, 224, 224, 3], logits [B, classes]. In training there are three of them: the
    network's own, and those of the auxiliary heads on modules 4a and 4d. The heads have parameters
    from the start, whether or not the network is initialised in training.
    """

    classes: int
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array | list[jax.Array]:
        conv = partial(Convolution, dtype=self.dtype)
        # Not in the paper: the constants of the normalization, which are AlexNet's.
        x = local_response_normalization(max_pool(conv(64, 7, 2)(image), 2))
        x = conv(64, 1)(x)
        x = conv(192, 3)(x)
        x = max_pool(local_response_normalization(x), 2)
        heads = []
        for name, (widths, pooled) in MODULES.items():
            x = Inception(widths, self.dtype, name=name)(x)
            if name in ("4a", "4d") and (train or self.is_initializing()):
                head = Head(self.classes, dtype=self.dtype, name=f"head-{name}")
                heads.append(head(x, train=train))
            x = max_pool(x, 2) if pooled else x
        logits = classify(x, self.classes, self.dtype, train)
        return [logits, *heads] if train else logits


SMALL_MODULES = (
    Widths(16, 16, 32, 4, 8, 8),
    Widths(32, 24, 48, 8, 16, 16),
    Widths(40, 28, 56, 8, 20, 20),
)


class SmallGoogLeNet(nn.Module):
    """Not in the paper: a network in its manner for small images, one module at half the
    resolution and two at a quarter of it, an auxiliary head on the second.

    Images are [B, H, W, C], of 8 to 32 pixels; logits as in GoogLeNet.
    """

    classes: int
    auxiliary: bool = True  # with the head
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array | list[jax.Array]:
        first, second, third = SMALL_MODULES
        x = Convolution(32, 3, dtype=self.dtype)(image)
        x = Inception(first, self.dtype, name="first")(max_pool(x, 2))
        x = Inception(second, self.dtype, name="second")(max_pool(x, 2))
        heads = []
        if self.auxiliary and (train or self.is_initializing()):
            head = Head(self.classes, 2, 2, 32, 128, dtype=self.dtype, name="head")
            heads.append(head(x, train=train))
        x = Inception(third, self.dtype, name="third")(x)
        logits = classify(x, self.classes, self.dtype, train)
        return [logits, *heads] if train else logits
