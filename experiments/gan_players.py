"""Generative Adversarial Nets: the two players, as one algorithm.

`descend` makes each of them. To each the other is part of the data: the discriminator's batches are
real images and samples, the generator's are noise and the discriminator. A step moves both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxhist import losses
from jaxhist.algorithm import Algorithm, State, descend


class Players(NamedTuple):
    generator: Any
    discriminator: Any


def each(state: State) -> Players:
    """The players' own states."""
    parts = zip(state.params, state.opt_state, state.extra, strict=True)
    return Players(*(State(state.step, *part) for part in parts))


def both(players: Players) -> State:
    """The state of the game."""
    parts = zip(*((p.params, p.opt_state, p.extra) for p in players), strict=True)
    return State(players.generator.step, *(Players(*part) for part in parts))


def adversaries(
    networks: Players,
    shape: tuple[int, ...],
    loss: Callable[[jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    k: int = 1,
    ahead: int = 0,
) -> Algorithm:
    """Algorithm 1: k steps of the discriminator, then one of the generator.

    Not in the paper: the last of the k and the generator's are taken at once, as in its code.

    Args:
      networks: the generator makes images of noise, which its `draw` makes of a key and a number;
        the discriminator makes one logit of an image. Both take `train`.
      shape: of an image.
      loss: the generator's, of the discriminator's logits [B] for its samples.
      optimizer: of either.
      k: 0 leaves the discriminator as it is.
      ahead: steps that the discriminator learns alone, at the beginning.

    Returns:
      The Algorithm. Its batches have images for every step of the discriminator: `image`
      [B max(k, 1), *shape].
    """

    def init_model(network, example, key):
        extra = network.init(key, example, train=False)
        return extra.pop("params"), extra

    def apply(network, params, extra, x, key):
        variables, rngs = {"params": params, **extra}, {"dropout": key}
        return network.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    def discriminator_loss(params, extra, batch, key):
        real_key, sample_key = jax.random.split(key)
        real, extra = apply(networks.discriminator, params, extra, batch["image"], real_key)
        sample, extra = apply(networks.discriminator, params, extra, batch["sample"], sample_key)
        means = {"D real": real, "D sample": sample}  # of the probability of being real
        metrics = {name: jnp.mean(nn.sigmoid(logits)) for name, logits in means.items()}
        # Not in the paper: half of equation 1, as in its code.
        return losses.discriminator_loss(real, sample) / 2, (extra, metrics)

    def generator_loss(params, extra, batch, key):
        _, sample_key = jax.random.split(key)
        sample, extra = apply(networks.generator, params, extra, batch["noise"], key)
        other = batch["discriminator"]
        logits, _ = apply(networks.discriminator, other.params, other.extra, sample, sample_key)
        return loss(logits), (extra, {})

    norm = optax.snapshot("gradient", optax.tree.norm)
    noise, image = jnp.zeros((1, networks.generator.noise)), jnp.zeros((1, *shape))
    players = Players(
        descend(
            partial(init_model, networks.generator, noise),
            generator_loss,
            optax.chain(norm, optimizer),
        ),
        descend(partial(init_model, networks.discriminator, image), discriminator_loss, optimizer),
    )

    def init(key):
        ours, theirs = jax.random.split(key)
        return both(Players(players.generator.init(ours), players.discriminator.init(theirs)))

    def step(state, batch, key):
        before = each(state)
        G, D = before
        images = batch["image"].reshape(-1, max(k, 1), *shape)
        for i in range(images.shape[1]):
            noise_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            noise, opponent = networks.generator.draw(noise_key, len(images)), D
            sample, _ = apply(networks.generator, G.params, G.extra, noise, step_key)
            shown = {"image": images[:, i], "sample": sample}
            D, metrics = players.discriminator.step(D, shown, step_key)
        shown = {"noise": noise, "discriminator": opponent}
        G, of_generator = players.generator.step(G, shown, step_key)

        metrics["loss discriminator"] = metrics.pop("loss")
        metrics["loss generator"] = of_generator["loss"]
        metrics["gradient"] = optax.tree.get(G.opt_state, "gradient")  # the generator's
        if ahead or k == 0:
            alone = state.step < ahead
            G = unless(alone, before.generator, G)
            D = unless(~alone & (k == 0), before.discriminator, D)
        return both(Players(G, D)), metrics | {"count/examples": len(images)}

    return Algorithm(init, step)


def unless(stays: jax.Array, before: State, after: State) -> State:
    """`after`; of a player that stays as it is, `before`."""
    before = before.replace(step=after.step)
    return jax.tree.map(lambda a, b: jnp.where(stays, a, b), before, after)
