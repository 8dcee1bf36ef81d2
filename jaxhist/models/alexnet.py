"""ImageNet Classification with Deep Convolutional Neural Networks.

Alex Krizhevsky, Ilya Sutskever, Geoffrey E. Hinton, 2012. NIPS 25. Here: the network of two towers
(section 3.5), its later variant with one, and a small network in its manner.

Images come with pixels from 0 to 1, less their mean. The paper's are "raw RGB values", and for
these its constants are meant: a standard deviation of 0.01 for the weights, and an alpha that does
nothing to small activations. So the two networks for ImageNet multiply their input by 255.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist.convolution import convolve

# Section 5: "a zero-mean Gaussian distribution with standard deviation 0.01".
gaussian = nn.initializers.normal(0.01)
# Not in the paper: for small images N(0, 2 / fan_in), of 2015 (arXiv:1502.01852, eq. 10). From the
# paper's they train too slowly where few steps can be afforded; docs/alexnet.md has figures.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def local_response_normalization(
    a: jax.Array, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """b_i = a_i / (k + alpha sum_j a_j^2)^beta, j over the n channels around i (section 3.3).

    [..., C] -> the same. The sum stops at the first and the last channel. Alpha is not divided by
    n, as it is in some libraries.
    """
    channels = a.shape[-1]
    squares = jnp.pad(a**2, [(0, 0)] * (a.ndim - 1) + [(n // 2, n // 2)])
    total = sum(squares[..., j : j + channels] for j in range(n))
    return a / (k + alpha * total) ** beta


class Dropout(nn.Module):
    """Section 4.2: in training, each unit's output is set to zero with probability `rate`; in a
    test all are there, multiplied by the probability of having been. [B, ...] -> the same."""

    rate: float = 0.5

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train:
            return (1 - self.rate) * x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return jnp.where(kept, x, 0)


def overlapping_pool(x: jax.Array, padding: str = "VALID") -> jax.Array:
    """The maxima of windows of 3x3, two apart (section 3.4). [B, H, W, C] -> [B, H', W', C]."""
    return nn.max_pool(x, (3, 3), (2, 2), padding)


def convolve_towers(x, kernel, *arguments, feature_group_count: int, **options) -> jax.Array:
    """A convolution in groups, as one for each tower: of x [B, H, W, C] and kernel
    [h, w, C / groups, O] the parts that belong together.

    The same numbers as XLA's own, whose gradient takes six times as long on CPU.
    """
    parts = (jnp.split(array, feature_group_count, -1) for array in (x, kernel))
    outputs = [convolve(*pair, *arguments, **options) for pair in zip(*parts, strict=True)]
    return jnp.concatenate(outputs, -1)


def convolution(filters, kernel, strides=1, padding=0, *, bias=0.0, groups=1, dtype):
    """A square convolution, initialised as in section 5."""
    return nn.Conv(
        filters,
        (kernel, kernel),
        strides,
        padding,
        feature_group_count=groups,
        kernel_init=gaussian,
        bias_init=nn.initializers.constant(bias),
        dtype=dtype,
        conv_general_dilated=convolve_towers,
    )


def dense(features: int, *, bias: float = 0.0, dtype: Any) -> nn.Dense:
    """A fully connected layer, initialised as in section 5."""
    return nn.Dense(
        features,
        kernel_init=gaussian,
        bias_init=nn.initializers.constant(bias),
        dtype=dtype,
    )


def at_least_float32(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class AlexNet(nn.Module):
    """The network of Fig. 2, both towers in one array: the first half of the channels is the one
    GPU's, the second the other's. Images [B, 224, 224, 3], logits [B, classes]."""

    classes: int
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        conv, fc = partial(convolution, dtype=self.dtype), partial(dense, dtype=self.dtype)
        # 55 = (224 + 2 + 2 - 11) // 4 + 1. Not in the paper: it names no padding, and without it
        # there are 54.
        x = nn.relu(conv(96, 11, 4, 2)(255 * image))
        x = overlapping_pool(local_response_normalization(x))
        # Section 5: biases of 1 give the ReLUs of these layers positive inputs to begin with.
        x = nn.relu(conv(256, 5, 1, 2, bias=1.0, groups=2)(x))
        x = overlapping_pool(local_response_normalization(x))
        x = nn.relu(conv(384, 3, 1, 1)(x))  # sees both towers
        x = nn.relu(conv(384, 3, 1, 1, bias=1.0, groups=2)(x))
        x = nn.relu(conv(256, 3, 1, 1, bias=1.0, groups=2)(x))
        x = overlapping_pool(x).reshape(len(x), -1)  # [B, 6 * 6 * 256]
        for _ in range(2):
            x = Dropout()(nn.relu(fc(4096, bias=1.0)(x)), train=train)
        return at_least_float32(fc(self.classes)(x))


class OneTower(nn.Module):
    """The variant with one tower (arXiv:1404.5997), as in torchvision. Images [B, 224, 224, 3],
    logits [B, classes].

    Not in the paper of 2012: the widths, no groups, no normalization, and dropout before the first
    two fully connected layers, scaled in training instead of in a test.
    """

    classes: int
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        conv, fc = partial(convolution, dtype=self.dtype), partial(dense, dtype=self.dtype)
        x = overlapping_pool(nn.relu(conv(64, 11, 4, 2)(255 * image)))
        x = overlapping_pool(nn.relu(conv(192, 5, 1, 2, bias=1.0)(x)))
        x = nn.relu(conv(384, 3, 1, 1)(x))
        x = nn.relu(conv(256, 3, 1, 1, bias=1.0)(x))
        x = nn.relu(conv(256, 3, 1, 1, bias=1.0)(x))
        x = overlapping_pool(x).reshape(len(x), -1)  # [B, 6 * 6 * 256]
        for _ in range(2):
            x = nn.relu(fc(4096, bias=1.0)(nn.Dropout(0.5, deterministic=not train)(x)))
        return at_least_float32(fc(self.classes)(x))


class SmallAlexNet(nn.Module):
    """A network for small images, [B, H, W, C] to logits [B, classes]: three convolutions of 5x5,
    each with overlapping pooling behind it, and fully connected layers.

    Without hidden ones it has four layers, as that of Fig. 1. Not in the paper: its widths and
    windows, which the paper does not give; pixels from 0 to 1; biases of 0; and the constants of
    normalization, which suit these pixels.
    """

    classes: int
    width: int  # filters of the first two convolutions; the third has twice as many
    hidden: tuple[int, ...] = ()  # widths of the fully connected layers before the last
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    normalize: bool = False  # local responses, in the first two layers
    dropout: float = 0.0  # in the hidden fully connected layers
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        x = image
        for layer, filters in enumerate((self.width, self.width, 2 * self.width)):
            conv = nn.Conv(
                filters,
                (5, 5),
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=convolve,
            )
            x = self.activation(conv(x))
            if self.normalize and layer < 2:
                x = local_response_normalization(x, k=1.0, alpha=0.1)
            x = overlapping_pool(x, "SAME")
        x = x.reshape(len(x), -1)
        for features in self.hidden:
            x = nn.Dense(features, kernel_init=he_normal, dtype=self.dtype)(x)
            x = Dropout(self.dropout)(self.activation(x), train=train)
        logits = nn.Dense(self.classes, kernel_init=he_normal, dtype=self.dtype)(x)
        return at_least_float32(logits)
