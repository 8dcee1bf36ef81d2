"""Generative Adversarial Nets.

Ian J. Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair,
Aaron Courville, Yoshua Bengio, 2014. arXiv:1406.2661. Here: the two networks for MNIST. The paper
gives their kinds of layers; widths and initialisation are those of the code that was published with
it (github.com/goodfeli/adversarial, mnist.yaml).

Images are [B, H, W, C] with pixels from 0 to 1. B batch, Z noise.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def uniform(limit: float):
    """U(-limit, limit), of weights."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def log_odds(image: np.ndarray):
    """The biases with which a sigmoid gives the mean of images [N, H, W, C] uint8."""
    mean = np.clip(image.mean(0, dtype=np.float64).ravel() / 255, 1e-7, 1 - 1e-7)
    return jnp.asarray(np.log(mean / (1 - mean)), jnp.float32)


class Generator(nn.Module):
    """Noise [B, Z] -> images [B, H, W, C]: ReLUs, and sigmoids for the pixels."""

    shape: tuple[int, int, int]  # H, W, C
    widths: tuple[int, ...] = (1200, 1200)
    noise: int = 100  # Z
    output_bias: Any = nn.initializers.zeros  # (key, shape, dtype) -> biases of the pixels

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        """Noise [count, Z], uniform, of variance 1."""
        return jax.random.uniform(key, (count, self.noise), minval=-(3**0.5), maxval=3**0.5)

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        for width in self.widths:
            z = nn.relu(nn.Dense(width, kernel_init=uniform(0.05))(z))
        pixels = nn.Dense(
            math.prod(self.shape), kernel_init=uniform(0.05), bias_init=self.output_bias
        )
        return nn.sigmoid(pixels(z)).reshape(-1, *self.shape)


class Maxout(nn.Module):
    """The largest of several linear functions of the input (arXiv:1302.4389).
    [B, D] -> [B, units]."""

    units: int
    pieces: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.pieces * self.units, kernel_init=uniform(0.005))(x)
        return x.reshape(-1, self.pieces, self.units).max(1)


class Discriminator(nn.Module):
    """Images -> logits [B], of the probability that an image is real: two layers of maxout.

    Dropout, in training, leaves out a fifth of the pixels and half of the hidden units.
    """

    units: int = 240

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dropout(0.2, deterministic=not train)(image.reshape(len(image), -1))
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=not train)(Maxout(self.units)(x))
        return nn.Dense(1, kernel_init=uniform(0.005))(x)[:, 0]
