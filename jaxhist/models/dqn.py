"""Playing Atari with Deep Reinforcement Learning.

Volodymyr Mnih, Koray Kavukcuoglu, David Silver, Alex Graves, Ioannis Antonoglou, Daan Wierstra,
Martin Riedmiller, 2013. arXiv:1312.5602. And Human-level control through deep reinforcement
learning, 2015. doi:10.1038/nature14236. Here: the networks Q, which give the value of each action.

Frames come as bytes, a screen's pixels from 0 to 255, as booleans, a grid of cells in which
something is or is not, or as numbers. H height, W width, C channels: of a screen the last four
frames.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist.convolution import convolve_small


def uniform(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), of weights and of biases.

    Not in the paper: it is what Torch does if not told otherwise, and so its code.
    """
    limit = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def convolution(filters: int, window: int, stride: int, channels: int, **options) -> nn.Conv:
    """Of images with so many channels, without padding."""
    draw = uniform(window**2 * channels)
    return nn.Conv(
        filters,
        (window, window),
        (stride, stride),
        padding="VALID",
        kernel_init=draw,
        bias_init=draw,
        **options,
    )


def dense(units: int, inputs: int) -> nn.Dense:
    return nn.Dense(units, kernel_init=uniform(inputs), bias_init=uniform(inputs))


def numbers(frames: jax.Array) -> jax.Array:
    """Bytes or booleans as numbers from 0 to 1; numbers as they are."""
    return frames.astype(jnp.float32) / (255 if frames.dtype == jnp.uint8 else 1)


class Nature(nn.Module):
    """The network of 2015 (Methods). [B, 84, 84, C] -> [B, actions]

    Not in the paper: no padding; its code adds a pixel in front of the first layer, which has 20x20
    outputs either way.
    """

    actions: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = numbers(frames)
        x = nn.relu(convolution(32, 8, 4, x.shape[-1])(x))
        x = nn.relu(convolution(64, 4, 2, 32)(x))
        x = nn.relu(convolution(64, 3, 1, 64)(x)).reshape(len(x), -1)
        x = nn.relu(dense(512, x.shape[-1])(x))
        return dense(self.actions, 512)(x)


class Workshop(nn.Module):
    """The network of 2013 (section 4.1). [B, 84, 84, C] -> [B, actions]"""

    actions: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = numbers(frames)
        x = nn.relu(convolution(16, 8, 4, x.shape[-1])(x))
        x = nn.relu(convolution(32, 4, 2, 16)(x)).reshape(len(x), -1)
        x = nn.relu(dense(256, x.shape[-1])(x))
        return dense(self.actions, 256)(x)


class Linear(nn.Module):
    """What both are compared with (2015, Extended Data Table 4): one layer.
    [B, H, W, C] -> [B, actions]"""

    actions: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = numbers(frames).reshape(len(frames), -1)
        return dense(self.actions, x.shape[-1])(x)


class MinAtar(nn.Module):
    """For games of 10x10 cells. [B, 10, 10, C] -> [B, actions]

    Not in the paper: the network of Young and Tian, arXiv:1903.03176.
    """

    actions: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = numbers(frames)
        layer = convolution(16, 3, 1, x.shape[-1], conv_general_dilated=convolve_small)
        x = nn.relu(layer(x)).reshape(len(x), -1)
        x = nn.relu(dense(128, x.shape[-1])(x))
        return dense(self.actions, 128)(x)


class Control(nn.Module):
    """For a few numbers that describe a state. [B, 1, 1, C] -> [B, actions]

    Not in the paper: two layers of ReLUs.
    """

    actions: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = numbers(frames).reshape(len(frames), -1)
        x = nn.relu(dense(128, x.shape[-1])(x))
        x = nn.relu(dense(128, 128)(x))
        return dense(self.actions, 128)(x)
