"""Deep Residual Learning for Image Recognition.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, 2015. arXiv:1512.03385. Here: the networks of
section 4.2 for small pictures, and their plain twins without shortcuts.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import UserError

# Section 3.4: "We initialize the weights as in [13]", N(0, 2 / fan_in) (arXiv:1502.01852, eq. 10).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def identity_shortcut(x: jax.Array, filters: int, strides: int) -> jax.Array:
    """Option A (section 3.3): the identity, subsampled, with zeros for the new channels.

    [B, H, W, C] -> [B, H / strides, W / strides, filters]. It has no parameters, so a residual
    network and its plain twin have the same number of them.
    """
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, filters - x.shape[-1])))


class Block(nn.Module):
    """y = ReLU(x + F(x)), F two 3x3 convolutions (Fig. 2, eq. 1); plain: y = ReLU(F(x))."""

    filters: int
    strides: int
    residual: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.filters, strides=self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters)(y)
        y = self.norm()(y)
        if self.residual:
            y = y + identity_shortcut(x, self.filters, self.strides)
        return nn.relu(y)


class SmallResNet(nn.Module):
    """The network for CIFAR-10 (section 4.2): 6n + 2 layers, three stages of n blocks.

    Widths 16, 32, 64 at the full, half and quarter resolution, then a global mean and a linear
    layer. Images are [B, H, W, C] of any size, logits [B, classes] in float32.
    """

    depth: int
    classes: int
    residual: bool = True
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        n, rest = divmod(self.depth - 2, 6)
        if n < 1 or rest:
            raise UserError(f"depth {self.depth} is not 6n + 2")
        # Padding is one pixel on each side, as in the paper's code; "SAME" with a stride of two
        # would pad on the right alone.
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=1,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
        )
        # Statistics are those of the whole batch, over all devices, and kept in float32.
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = nn.relu(norm()(conv(16)(image)))
        for stage, filters in enumerate((16, 32, 64)):
            for block in range(n):
                strides = 2 if stage > 0 and block == 0 else 1
                x = Block(filters, strides, self.residual, conv, norm)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, kernel_init=he_normal, dtype=self.dtype)(x).astype(
            jnp.promote_types(x.dtype, jnp.float32)
        )
