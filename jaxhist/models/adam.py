"""Adam: A Method for Stochastic Optimization, section 6: the networks that are trained there.

Diederik P. Kingma, Jimmy Lei Ba, 2014. arXiv:1412.6980.

Not in the paper: how weights are initialised; here N(0, 1 / fan_in), truncated, and biases at 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import UserError
from jaxhist.convolution import convolve


class Logistic(nn.Module):
    """Multi-class logistic regression (section 6.1). [B, D] -> logits [B, classes].

    Half of the features are dropped in training where `dropout` is 0.5.
    """

    classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class Multilayer(nn.Module):
    """Fully connected layers of ReLUs with dropout behind each (6.2). [B, D] -> [B, classes]."""

    widths: tuple[int, ...]
    classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class Convolutional(nn.Module):
    """Three times 5x5 convolution and 3x3 pooling with a stride of 2, then a fully connected layer
    (6.3). [B, H, W, C] -> [B, classes].

    Not in the paper: padding, which keeps the size, and that the input loses a fifth.
    """

    widths: tuple[int, int, int, int]  # of the convolutions, and of the fully connected layer
    classes: int
    dropout: float  # of the fully connected layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if not self.widths:
            raise UserError("widths of a convolutional network are at least one, not none")
        *filters, hidden = self.widths
        x = nn.Dropout(0.2 if self.dropout else 0.0, deterministic=not train)(x)
        for width in filters:
            x = nn.relu(nn.Conv(width, (5, 5), conv_general_dilated=convolve)(x))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = nn.relu(nn.Dense(hidden)(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class Autoencoder(nn.Module):
    """A variational auto-encoder (6.4; Kingma & Welling 2013, arXiv:1312.6114).

    [B, D] -> logits of the pixels [B, D], mean [B, Z] and log variance [B, Z] of the code, from
    which one code is drawn: an rng of the name `code`.
    """

    hidden: int
    code: int  # Z

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        h = nn.softplus(nn.Dense(self.hidden)(x))
        mean, log_variance = nn.Dense(self.code)(h), nn.Dense(self.code)(h)
        noise = jax.random.normal(self.make_rng("code"), mean.shape)
        z = mean + jnp.exp(log_variance / 2) * noise
        h = nn.softplus(nn.Dense(self.hidden)(z))
        return nn.Dense(x.shape[-1])(h), mean, log_variance
