"""Generative Adversarial Nets, arXiv:1406.2661, and DCGAN, arXiv:1511.06434."""

import sys
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad
from scipy.linalg import sqrtm
from scipy.special import logsumexp
from scipy.stats import norm
from test_photographs import encode, scene

from experiments import gan, gan_mixture
from experiments.gan_players import Players, adversaries, each
from jaxhist import UserError, evaluate, losses, plots
from jaxhist.claims import Trained
from jaxhist.data import photographs
from jaxhist.models import dcgan
from jaxhist.models.gan import Discriminator, Generator, Maxout, log_odds
from jaxhist.train import Run

# Models.


def init(network, x, seed=0):
    """The variables of a network."""
    return jax.jit(lambda key: network.init(key, x, train=False))(jax.random.key(seed))


def parameters(network, *shape):
    """How many, of a network for one example of this shape."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    init = lambda key, x: network.init(key, x, train=False)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), x)))


def test_parameters_are_those_of_the_published_networks():
    config = gan.PRESETS["paper"]
    assert parameters(Generator((28, 28, 1), config.widths), 100) == 2_503_984
    assert parameters(Discriminator(config.units), 28, 28, 1) == 1_231_441


def test_parameters_are_those_of_dcgan():
    widths = gan.PRESETS["dcgan"].widths
    assert parameters(dcgan.Generator((64, 64, 3), widths), 100) == 18_855_043
    assert parameters(dcgan.Discriminator(widths), 64, 64, 3) == 17_232_897


def test_the_generator_begins_around_the_mean_image():
    """Exactly there where the noise is 0."""
    experiment = gan.build(replace(gan.PRESETS["small"], widths=(8,), units=4), Run(devices=1))
    player = each(jax.jit(experiment.init)(jax.random.key(0))).generator
    generator = Generator((8, 8, 1), (8,))
    apply = jax.jit(partial(generator.apply, train=False))
    got = apply({"params": player.params}, np.zeros((1, 100), np.float32))
    train = gan.images.named("digits", gan.PRESETS["small"].validation).load()["train"]["image"]
    np.testing.assert_allclose(got[0], train.mean(0) / 255, atol=1e-6)


def test_log_odds_of_a_pixel_that_never_changes_are_finite():
    image = np.zeros((3, 1, 2, 1), np.uint8)
    image[:, :, 1] = 255
    np.testing.assert_allclose(log_odds(image), [-np.log(1e7), np.log(1e7)], rtol=1e-6)


def test_noise_is_uniform():
    for network, limit in ((Generator((8, 8, 1)), 3**0.5), (dcgan.Generator((8, 8, 1)), 1)):
        z = np.asarray(jax.jit(network.draw, static_argnums=1)(jax.random.key(0), 2000))
        assert z.shape == (2000, 100) and np.abs(z).max() <= limit
        assert np.isclose(z.std(), limit / 3**0.5, rtol=0.01) and abs(z.mean()) < 0.02


def test_maxout_is_the_largest_of_its_pieces():
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    module = Maxout(units=4, pieces=5)
    variables = jax.device_get(jax.jit(module.init)(jax.random.key(0), x))
    dense = variables["params"]["Dense_0"]
    want = np.full((7, 4), -np.inf)
    for n, piece, unit in np.ndindex(7, 5, 4):
        column = 4 * piece + unit
        value = x[n] @ dense["kernel"][:, column] + dense["bias"][column]
        want[n, unit] = max(want[n, unit], value)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), want, rtol=1e-5, atol=1e-8)


def test_dropout_keeps_four_fifths_of_the_pixels_and_half_of_the_units():
    image, network = np.ones((100, 8, 8, 1), np.float32), Discriminator(units=50)
    variables = init(network, image)
    watched = partial(
        network.apply,
        train=True,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout | Maxout),
    )
    seen = jax.jit(watched)(variables, image, rngs={"dropout": jax.random.key(1)})
    _, seen = jax.device_get(seen)
    output = {name: calls["__call__"][0] for name, calls in seen["intermediates"].items()}
    before = [image.reshape(100, 64), output["Maxout_0"], output["Maxout_1"]]
    for i, (x, keep) in enumerate(zip(before, (0.8, 0.5, 0.5), strict=True)):
        left = output[f"Dropout_{i}"]
        kept = left != 0
        assert abs(kept.mean() - keep) < 0.02
        np.testing.assert_allclose(left[kept], x[kept] / keep, rtol=1e-6)
    still = jax.jit(partial(network.apply, train=False))(variables, image)
    assert still.shape == (100,) and np.ptp(still) < 1e-6


def test_dcgan_makes_images_from_0_to_1_and_mirrors_them():
    generator, discriminator = dcgan.Generator((8, 12, 3), (4, 3)), dcgan.Discriminator((4, 3))
    z = 30 * np.asarray(generator.draw(jax.random.key(0), 5))
    variables = jax.device_get(init(generator, z))
    layer = variables["params"]["Layer_1"]
    layer["kernel"] = 1000 * layer["kernel"]
    generate = jax.jit(partial(generator.apply, train=True, mutable=["batch_stats"]))
    image, moved = jax.device_get(generate(variables, z))
    assert image.shape == (5, 8, 12, 3) and 0 <= image.min() < 0.1 and 0.9 < image.max() <= 1
    still = jax.tree.map(np.array_equal, moved["batch_stats"], variables["batch_stats"])
    assert not any(jax.tree.leaves(still))
    # To the discriminator gray is 0.
    gray = np.full_like(image, 0.5)
    discriminate = jax.jit(partial(discriminator.apply, train=False))
    logits = discriminate(init(discriminator, gray), gray)
    np.testing.assert_array_equal(logits, np.zeros(5))


def test_dcgan_normalizes_all_but_the_first_and_the_last():
    z, image = jnp.zeros((1, 100)), jnp.zeros((1, 16, 16, 3))
    widths = (8, 6, 5)
    for normalize, count in ((True, (3, 2)), (False, (0, 0))):
        networks = (
            (dcgan.Generator((16, 16, 3), widths, normalize=normalize), z),
            (dcgan.Discriminator(widths, normalize=normalize), image),
        )
        for (network, x), norms in zip(networks, count, strict=True):
            init = lambda key, x, network=network: network.init(key, x, train=False)
            params = jax.eval_shape(init, jax.random.key(0), x)["params"]
            assert sum(name.startswith("BatchNorm") for name in params) == norms


# Losses.


def test_losses_are_numpys():
    real, sample = np.random.default_rng(0).normal(size=(2, 6)) * 3
    D = lambda logit: 1 / (1 + np.exp(-logit))
    for loss, logits, want in (
        (losses.discriminator_loss, (real, sample), -np.log(D(real)) - np.log(1 - D(sample))),
        (losses.saturating_generator_loss, (sample,), np.log(1 - D(sample))),
        (losses.non_saturating_generator_loss, (sample,), -np.log(D(sample))),
    ):
        np.testing.assert_allclose(jax.jit(loss)(*logits), want, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(6,"):
        losses.discriminator_loss(real, sample[:, None])


def test_a_discriminator_that_cannot_tell_loses_log_4():
    half = np.zeros(3, np.float32)
    np.testing.assert_allclose(jax.jit(losses.discriminator_loss)(half, half), 1.386294, atol=1e-6)


def test_a_sample_that_is_told_for_sure_has_99_times_the_gradient():
    logit = np.float32(np.log(0.01 / 0.99))
    both = losses.saturating_generator_loss, losses.non_saturating_generator_loss
    saturating, other = (float(jax.jit(jax.grad(loss))(logit)) for loss in both)
    np.testing.assert_allclose([saturating, other], [-0.01, -0.99], rtol=1e-5)
    np.testing.assert_allclose(other / saturating, 99, rtol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_losses_stay_finite(logit):
    z = np.full(1, logit, np.float32)
    for loss in (losses.saturating_generator_loss, losses.non_saturating_generator_loss):
        value, slope = jax.jit(jax.value_and_grad(lambda z, loss=loss: loss(z)[0]))(z)
        assert np.isfinite(value) and -1 <= slope[0] <= 0
    assert jax.jit(losses.discriminator_loss)(-np.abs(z), np.abs(z)) == 2e4


# Algorithm.


class TinyGenerator(nn.Module):
    noise: int = 3

    def draw(self, key, count):
        return jax.random.normal(key, (count, self.noise))

    @nn.compact
    def __call__(self, z, *, train):
        return nn.Dense(2)(nn.tanh(nn.Dense(4)(z)))


class TinyDiscriminator(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(x)))[:, 0]


TINY = Players(TinyGenerator(), TinyDiscriminator())
RATE, KEY = 0.5, jax.random.key(7)


def game(loss=losses.non_saturating_generator_loss, **options):
    """The algorithm of two small networks, its first state, and images for two steps."""
    algorithm = adversaries(TINY, (2,), loss, optax.sgd(RATE), **options)
    image = np.random.default_rng(0).normal(2, size=(16, 2)).astype(np.float32)
    return algorithm, jax.jit(algorithm.init)(jax.random.key(0)), {"image": image}


def by_hand(state, image, loss, k):
    """A step of plain gradients."""
    G, D = state.params

    def of_discriminator(D, real, sample):
        p, q = (
            jax.nn.sigmoid(TINY.discriminator.apply({"params": D}, x, train=True))
            for x in (real, sample)
        )
        return -jnp.mean(jnp.log(p) + jnp.log(1 - q)) / 2

    def of_generator(G, D, noise):
        sample = TINY.generator.apply({"params": G}, noise, train=True)
        return jnp.mean(loss(TINY.discriminator.apply({"params": D}, sample, train=True)))

    descend = lambda params, gradient: jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    for i in range(k):
        opponent, real = D, image[i::k]  # of k steps each sees other images
        noise_key, _ = jax.random.split(jax.random.fold_in(KEY, i))
        noise = TINY.generator.draw(noise_key, len(real))
        sample = TINY.generator.apply({"params": G}, noise, train=True)
        D = descend(D, jax.grad(of_discriminator)(D, real, sample))
    value, gradient = jax.value_and_grad(of_generator)(G, opponent, noise)
    return descend(G, gradient), D, value, optax.tree.norm(gradient)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def moved(before, after):
    """Of each player, whether a parameter is another."""
    before, after = jax.device_get((before.params, after.params))
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    return Players(*(not same(*pair) for pair in zip(before, after, strict=True)))


@pytest.mark.parametrize(
    "loss, k", [(losses.non_saturating_generator_loss, 1), (losses.saturating_generator_loss, 2)]
)
def test_each_player_descends_its_own_loss_alone(loss, k):
    algorithm, state, batch = game(loss, k=k)
    after, metrics = jax.jit(algorithm.step)(state, batch, KEY)
    G, D, value, gradient = jax.jit(partial(by_hand, loss=loss, k=k))(state, batch["image"])
    assert moved(state, after) == Players(True, True) and after.step == 1
    assert_close(after.params, Players(G, D))
    assert_close((metrics["loss generator"], metrics["gradient"]), (value, gradient))
    assert metrics["count/examples"] == 16 // k


def test_with_k_0_the_discriminator_stays():
    algorithm, state, batch = game(k=0)
    after, _ = jax.jit(algorithm.step)(state, batch, KEY)
    assert moved(state, after) == Players(True, False) and after.step == 1


def test_a_discriminator_that_is_ahead_learns_alone_first():
    for k, then in ((1, Players(True, True)), (0, Players(True, False))):
        algorithm, state, batch = game(k=k, ahead=2)
        step = jax.jit(algorithm.step)
        for expected in (Players(False, True), Players(False, True), then):
            after, _ = step(state, batch, KEY)
            assert moved(state, after) == expected
            state = after
        assert state.step == 3


def test_the_optimizer_is_that_of_the_published_code():
    """All 250 epochs: the rate falls and the momentum rises, step by step."""
    optimizer, steps = gan.optimizer(gan.PRESETS["paper"]), 125_000
    gradients = np.random.default_rng(0).normal(size=steps).astype(np.float32)

    def update(state, gradient):
        change, state = optimizer.update(gradient, state)
        return state, change

    got = jax.lax.scan(update, optimizer.init(jnp.float32(0)), jnp.asarray(gradients))[1]
    want, velocity, rate = np.empty(steps), 0.0, 0.1
    for n, gradient in enumerate(gradients.tolist()):
        velocity = (0.5 + 0.2 * n / steps) * velocity - rate * gradient
        want[n], rate = velocity, rate / 1.000004
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_rate_does_not_fall_below_a_millionth():
    optimizer = gan.optimizer(gan.PRESETS["paper"])
    state = optax.tree.set(optimizer.init(jnp.float32(0)), count=jnp.int32(4_000_000))
    change, _ = optimizer.update(jnp.float32(1), state)
    np.testing.assert_allclose(change, -1e-6, rtol=1e-5)


# What samples are worth.


def test_parzen_log_likelihoods_are_scipys():
    random = np.random.default_rng(0)
    samples, x = (random.random((count, 4)).astype(np.float32) for count in (30, 11))
    sigmas = np.array([0.1, 0.3, 1.0])
    got = evaluate.parzen_log_likelihoods(samples, x, sigmas, block=4)
    want = np.empty((3, 11))
    for k, n in np.ndindex(3, 11):
        each_window = norm.logpdf(x[n], samples, sigmas[k]).sum(1)
        want[k, n] = logsumexp(each_window) - np.log(30)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_the_frechet_distance_is_scipys():
    random = np.random.default_rng(0)
    a = random.normal(size=(200, 5)) @ random.normal(size=(5, 5))
    b = random.normal(1, 2, size=(300, 5))
    C_a, C_b = (np.cov(x, rowvar=False) for x in (a, b))
    between = np.sum((a.mean(0) - b.mean(0)) ** 2)
    want = between + np.trace(C_a + C_b - 2 * np.real(sqrtm(C_a @ C_b)))
    np.testing.assert_allclose(evaluate.frechet_distance(a, b), want, rtol=1e-9)
    assert abs(evaluate.frechet_distance(a, a)) < 1e-9
    np.testing.assert_allclose(evaluate.frechet_distance(a, a + 2), 4 * 5, rtol=1e-9)


def test_the_best_discriminator_of_the_mixture_has_the_largest_value():
    """Proposition 1."""
    x = gan_mixture.GRID
    p = (norm.pdf(x, -1.5, 0.5) + norm.pdf(x, 1.5, 0.5)) / 2
    q = norm.pdf(x)
    best = gan_mixture.best(x)
    np.testing.assert_allclose(best, p / (p + q), rtol=1e-9)
    value = lambda D: p * np.log(D) + q * np.log(1 - D)
    for other in (best - 1e-3, best + 1e-3, np.full_like(best, 0.5)):
        inside = (other > 0) & (other < 1)
        assert (value(best)[inside] >= value(other)[inside] - 1e-12).all()
    total, _ = quad(
        lambda x: gan_mixture.density(np.array([[x]])).item(), -5, 5, points=(-1.5, 1.5)
    )
    assert np.isclose(total, 1)


def test_the_generator_of_the_mixture_begins_as_a_normal_distribution():
    experiment = gan.build(gan_mixture.Mixture(learns=False, batch=8), Run(devices=1))
    points = gan_mixture.generate(jax.jit(experiment.init)(jax.random.key(0)), 20_000)
    assert points.shape == (20_000, 1)
    assert abs(points.mean()) < 0.03 and abs(points.std() - 1) < 0.03


def test_tiles_lie_side_by_side():
    images = (
        np.zeros((3, 2, 2, 1), np.uint8) + np.array([10, 20, 30], np.uint8)[:, None, None, None]
    )
    grid = plots.tiles(images, columns=2, height=4)
    middle = grid[3::8, 3::8, 0] if grid.shape[0] == 16 else None
    assert middle is not None and middle.tolist() == [[10, 20], [30, 255]]


def test_a_photograph_becomes_its_central_square():
    for width, height in ((96, 64), (64, 96)):
        whole = scene(width, height)
        got = photographs.central_square(encode(whole, "PNG"), 64)
        left, top = (width - 64) // 2, (height - 64) // 2
        np.testing.assert_array_equal(got, whole[top : top + 64, left : left + 64])


# Figures of the claims.


def test_figures_are_read_from_the_log():
    lines = [
        {
            "phase": "train",
            "step": step,
            "gradient": step / 10,
            "D sample": 0.01,
            "loss discriminator": loss,
        }
        for step, loss in ((100, 9.0), (150, 9.0), (gan.AHEAD, 1.0), (250, 3.0))
    ]
    test = {"phase": "test", "classes": 8, "log_likelihood": 5.0}
    trained = Trained(None, None, [{}, *lines, test], None)
    assert gan.early(trained) == {"gradient": 20.0, "D sample": 0.01, "log_likelihood": 5.0}
    assert gan.stability(trained) == {
        "classes": 8.0,
        "collapsed": 1.0,
        "variance": 1.0,
        "mean loss": 2.0,
    }


# Bad input.


def test_images_that_cannot_be_halved_are_refused():
    config = replace(gan.PRESETS["small"], network="convolutional", widths=(8, 8, 8, 8))
    with pytest.raises(UserError, match="images of 8 x 8 cannot be halved 4 times"):
        gan.build(config, Run(devices=1)).init(jax.random.key(0))


def test_photographs_that_are_not_there_are_named():
    config = replace(gan.PRESETS["dcgan"], data="no_such_photographs")
    with pytest.raises(UserError, match="no_such_photographs"):
        gan.build(config, Run(devices=1))


def test_a_network_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gan", "describe", "small", "--network", "recurrent"])
    with pytest.raises(SystemExit) as stopped:
        gan.main(gan.build, gan.PRESETS, gan.CLAIMS)
    assert stopped.value.code == 2
    assert "recurrent" in "".join(capsys.readouterr())
