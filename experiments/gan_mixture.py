"""Generative Adversarial Nets, section 4: the theory, where the best discriminator is known.

Real points are of a mixture of two Gaussians on a line. The generator begins as another Gaussian;
as long as it stays one, the best discriminator is p / (p + q) of two known densities, and where it
learns there should be nothing left to tell. `python -m experiments.gan claims --only N2` uses it.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epy

from experiments.gan_players import Players, adversaries, each
from jaxhist import devices, losses
from jaxhist.adam import adam
from jaxhist.algorithm import State, keys
from jaxhist.fields import NonNegativeInt, PositiveInt
from jaxhist.train import Experiment, Run

with epy.lazy_imports():  # they take a second
    from scipy import stats

CENTRES, WIDTH = (-1.5, 1.5), 0.5
GRID = np.linspace(-2.5, 2.5, 101)[:, None]  # 97 % of either density


@dataclass(frozen=True)
class Mixture:
    learns: bool  # whether the generator does
    batch: PositiveInt = 1000
    rate: float = 0.01  # falls to 0 along half a cosine
    steps: NonNegativeInt = 3000
    evaluate_every: PositiveInt = 3000


class Generator(nn.Module):
    """Noise [B, Z] -> points [B, 1]. It begins as the first number of the noise, N(0, 1)."""

    noise: int = 8  # Z

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, self.noise))

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        h = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(z))))
        return z[:, :1] + nn.Dense(1, kernel_init=nn.initializers.zeros)(h)


class Discriminator(nn.Module):
    """Points [B, 1] -> logits [B]."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(64)(x), 0.2)
        return nn.Dense(1)(x)[:, 0]


def real(key: jax.Array, count: int) -> jax.Array:
    """Points [count, 1] of the mixture."""
    which, where = jax.random.split(key)
    centre = jax.random.choice(which, jnp.array(CENTRES), (count, 1))
    return centre + WIDTH * jax.random.normal(where, (count, 1))


def density(x: np.ndarray) -> np.ndarray:
    """Of the mixture, p."""
    return np.mean([stats.norm.pdf(x, centre, WIDTH) for centre in CENTRES], axis=0)


def best(x: np.ndarray) -> np.ndarray:
    """The best discriminator, p / (p + q), where q is N(0, 1) (proposition 1)."""
    return density(x) / (density(x) + stats.norm.pdf(x))


def discriminate(state: State, x: np.ndarray) -> np.ndarray:
    """The probability of being real of points [N, 1]. -> [N]"""
    params = each(state).discriminator.params
    return np.asarray(jax.nn.sigmoid(Discriminator().apply({"params": params}, x, train=False)))


def generate(state: State, count: int) -> np.ndarray:
    """Points [count, 1] of the generator, always of the same noise."""
    noise = Generator().draw(jax.random.key(0), count)
    params = each(state).generator.params
    return np.asarray(Generator().apply({"params": params}, noise, train=False))


def measure(state: State) -> dict[str, float]:
    """The value V (eq. 1); how far from 1/2 the discriminator is, in the mean over real points and
    samples; and the total variation between the densities of samples and of the mixture."""
    samples = generate(state, 100_000)
    of_real, of_samples = (
        discriminate(state, x) for x in (real(jax.random.key(1), len(samples)), samples)
    )
    counts, edges = np.histogram(samples, 80, (-4, 4))
    q, p = counts / len(samples), density((edges[1:] + edges[:-1]) / 2) * np.diff(edges)
    return {
        "V": float(np.mean(np.log(of_real)) + np.mean(np.log(1 - of_samples))),
        "from a half": float(np.mean(np.abs(np.concatenate([of_real, of_samples]) - 0.5))),
        "total variation": float((np.abs(q - p).sum() + 1 - q.sum()) / 2),
    }


def build(config: Mixture, run: Run) -> Experiment:
    mesh, key = devices.mesh(run.devices, run.mesh), keys(run.seed)
    draw = jax.jit(lambda step: real(jax.random.fold_in(key.draw, step), config.batch))
    algorithm = adversaries(
        Players(Generator(), Discriminator()),
        (1,),
        losses.non_saturating_generator_loss,
        adam(optax.cosine_decay_schedule(config.rate, max(config.steps, 1)), b1=0.5),
        ahead=0 if config.learns else config.steps,
    )
    return Experiment(
        data=lambda step, state: {"image": devices.place(draw(step), devices.split(mesh))},
        batch={"image": jax.ShapeDtypeStruct((config.batch, 1), jnp.float32)},
        init=algorithm.init,
        step=algorithm.step,
        evaluate=measure,
        test=measure,
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )
