"""Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks.

Alec Radford, Luke Metz, Soumith Chintala, 2015. arXiv:1511.06434. Here: the networks of section 3
and Fig. 1. Strides take the place of pooling, no layer but the first and the last is fully
connected, and batches are normalized in all but the generator's output and the discriminator's
input. A batch of real images and one of samples are normalized each by its own statistics.

Images are [B, H, W, C] with pixels from 0 to 1; inside they are scaled to -1 to 1, the range of the
hyperbolic tangent. B batch, Z noise.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from jaxhist import UserError
from jaxhist.convolution import double, halve

# Section 4: "a zero-centered Normal distribution with standard deviation 0.02".
gaussian = nn.initializers.normal(0.02)


def normalization(on: bool, train: bool):
    """Batch normalization, with the statistics of this batch or in a test with running means."""
    if not on:
        return lambda: lambda x: x
    return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)


class Layer(nn.Module):
    """A convolution of 5x5 that halves or doubles the height and the width, [B, H, W, C] ->
    [B, H', W', filters]; with a bias where no normalization brings one."""

    convolve: Callable[[jax.Array, jax.Array], jax.Array]  # `halve` or `double`
    filters: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.convolve(x, self.param("kernel", gaussian, (5, 5, x.shape[-1], self.filters)))
        if not self.use_bias:
            return x
        return x + self.param("bias", nn.initializers.zeros, (1, 1, 1, self.filters))


class Generator(nn.Module):
    """Noise [B, Z] -> images [B, H, W, C]. Each layer doubles the height and the width.

    Raises UserError where there are no widths, or the images are not 2^len(widths) times a whole
    number high and wide.
    """

    shape: tuple[int, int, int]  # H, W, C
    widths: tuple[int, ...] = (1024, 512, 256, 128)  # channels, from the smallest image on
    noise: int = 100  # Z
    normalize: bool = True

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        """Noise [count, Z], uniform from -1 to 1."""
        return jax.random.uniform(key, (count, self.noise), minval=-1.0)

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        norm = normalization(self.normalize, train)
        height, width, channels = self.shape
        scale = 2 ** len(self.widths)
        if not self.widths or height % scale or width % scale:
            raise UserError(
                f"images of {height} x {width} cannot be halved {len(self.widths)} times; choose "
                "other widths, or photographs of another size"
            )
        first = nn.Dense(
            height // scale * (width // scale) * self.widths[0],
            use_bias=not self.normalize,
            kernel_init=gaussian,
        )
        x = first(z).reshape(-1, height // scale, width // scale, self.widths[0])
        x = nn.relu(norm()(x))
        up = partial(Layer, double)
        for filters in self.widths[1:]:
            x = nn.relu(norm()(up(filters, use_bias=not self.normalize)(x)))
        return (nn.tanh(up(channels)(x)) + 1) / 2


class Discriminator(nn.Module):
    """Images -> logits [B], of the probability that an image is real: the generator's mirror."""

    widths: tuple[int, ...] = (1024, 512, 256, 128)  # channels, the generator's
    normalize: bool = True

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        norm = normalization(self.normalize, train)
        down = partial(Layer, halve)
        first, *others = reversed(self.widths)
        x = nn.leaky_relu(down(first)(2 * image - 1), 0.2)
        for filters in others:
            x = nn.leaky_relu(norm()(down(filters, use_bias=not self.normalize)(x)), 0.2)
        return nn.Dense(1, kernel_init=gaussian)(x.reshape(len(x), -1))[:, 0]
