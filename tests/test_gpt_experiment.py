"""GPT's data, questions, completions, recipe and scaling laws."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs
from forked import Command
from matplotlib.figure import Figure
from tiny import begun

from experiments import gpt, gpt_claims, gpt_recipe, gpt_text, gpt_tuning
from jaxhist import UserError, cli, log
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints, Progress
from jaxhist.claims import Trained
from jaxhist.data import batches, documents, prepared, text
from jaxhist.models.gpt import GPT, Classifier, Size
from jaxhist.models.gpt_lstm import LanguageLSTM
from jaxhist.packed import EOS, PAD
from jaxhist.train import Run, train

TINY = dataclasses.replace(
    gpt.PRESETS["small"],
    data="letters",
    unit="characters",
    vocabulary=18,
    layers=2,
    width=16,
    heads=2,
    length=32,
    batch=8,
    steps=2,
    evaluate_every=2,
)


@pytest.fixture(autouse=True, scope="module")
def few():
    """Documents of letters, questions on them, and sentences with labels are few."""
    letters, examples = documents.letters("test")[:32], prepared.examples
    some = lambda *of: list(itertools.islice(examples(*of), 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "letters", lambda split: letters)
        patch.setattr(gpt_text, "QUESTIONS", 16)
        patch.setattr(prepared, "examples", some)
        yield


def drawn(init, scale=0.5):
    """What an `init` makes, with other numbers: none is drawn by a program."""
    random = np.random.default_rng(2)
    normal = lambda a: random.normal(size=a.shape, scale=scale).astype(a.dtype)
    return jax.device_put(jax.tree.map(normal, jax.eval_shape(init)))


# Completions


def test_a_text_goes_on_as_without_a_cache():
    """Also where the window is full and begun again."""
    model = GPT(9, Size(2, 8, 2), 6)
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), train=False)
    params = drawn(init, scale=1)["params"]
    adjust = lambda logits: 0.3 * logits.at[:, EOS].set(-jnp.inf)
    key = jax.random.key(0)
    stream = gpt_text.completions(model, params, [3, 4], adjust, key)
    got = list(itertools.islice(stream, 12))

    @jax.jit
    def draw(tokens, place, number):
        logits = model.apply({"params": params}, tokens, train=False)[:, place]
        logits = adjust(logits.at[:, PAD].set(-jnp.inf))
        return jax.random.categorical(jax.random.fold_in(key, number), logits)[0]

    written, seen = [3, 4], [3, 4]
    for _ in range(12):
        written.append(int(draw(text.padded([seen], 6), len(seen) - 1, len(written))))
        seen = [*seen, written[-1]] if len(seen) < 6 else written[-3:]
    assert got == written[2:] and len(set(got)) > 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that has hardly learned anything, and its last line."""
    run = Run(workdir=str(tmp_path_factory.mktemp("trained") / "run"), devices=1)
    identity = {"experiment": "gpt", "config": dataclasses.asdict(TINY)}
    return run, train(gpt.build(TINY, run), run, identity)


def test_what_is_measured_agrees(trained):
    _, line = trained
    assert line["perplexity"] == pytest.approx(np.exp(line["loss"]))
    assert line["bits/character"] == pytest.approx(line["loss"] / np.log(2) * 48 / 47)
    assert all(0 <= line[f"accuracy {k}-shot"] <= 1 for k in gpt_text.SHOTS)
    assert 2 < line["loss"] < 3.2  # of 18 tokens at random: 2.89


def test_a_batch_in_parts_is_measured_in_parts():
    """Not more windows at a time than are trained on, and to the same figures."""
    whole, parts = (
        gpt.build(dataclasses.replace(TINY, parts=parts), Run(devices=1)) for parts in (1, 4)
    )
    state = drawn(lambda: whole.init(jax.random.key(0)))
    want = whole.evaluate(state)
    with pytest.MonkeyPatch.context() as patch:
        slices, sizes = batches.slices, []
        patch.setattr(batches, "slices", lambda x, size: sizes.append(size) or slices(x, size))
        assert parts.evaluate(state) == pytest.approx(want, rel=1e-5)
    assert sizes == [TINY.batch // 4]


def complete(run, *arguments):
    command = {"complete": gpt_text.command(gpt.language_model)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.argv", ["gpt", "complete", run.workdir, *map(str, arguments)])
        cli.main(gpt.build, gpt.PRESETS, gpt.CLAIMS, command)
    return stop.value.code


def test_complete_ends_where_nobody_reads(trained, tmp_path):
    """`complete ... | head -c 2`, which ends it as it ends `cat`."""
    os.mkfifo(tmp_path / "pipe")
    arguments = ["complete", trained[0].workdir, "ab", "--tokens", 10_000_000]
    started = Command("experiments.gpt", *arguments, output=tmp_path / "pipe")
    with (tmp_path / "pipe").open() as pipe:
        assert pipe.read(2) == "ab"
    process = started.ended()
    assert (process.returncode, process.stderr) == (-signal.SIGPIPE, "")


def test_complete_goes_on_with_a_text(trained, capsys):
    run, _ = trained
    said = []
    for seed in (0, 0, 1):
        assert complete(run, "ab\nb", "--tokens", 40, "--seed", seed, "--top-k", 5) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2] and all(one.startswith("ab\nb") for one in said)
    assert len(said[0]) > 6
    assert complete(run, "ab" * TINY.length, "--tokens", 1) == 0
    told = f"the text has {2 * TINY.length} tokens; the last {TINY.length // 2} are read"
    assert capsys.readouterr().err == f"warning: {told}\n"
    assert complete(run, "a", "--temperature", 0) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: a temperature is above 0")


# Fine-tuning

V, T = 11, 8
CLASSIFIERS = {
    "transformer": Classifier(GPT(V, Size(2, 8, 2), T), 3),
    "lstm": Classifier(LanguageLSTM(V, 1, 8), 3),
}
ROWS = np.array([[EOS, 5, 6, 7, EOS, PAD, PAD, PAD], [EOS, 5, EOS, 9, EOS, PAD, PAD, PAD]])


@pytest.fixture(params=CLASSIFIERS)
def classify(request):
    """tokens -> the logits of classes and of tokens."""
    model = CLASSIFIERS[request.param]
    variables = drawn(lambda: model.init(jax.random.key(0), ROWS, train=False))
    return jax.jit(lambda tokens: model.apply(variables, tokens, train=False))


def test_a_label_is_read_from_the_last_token(classify):
    """It depends on all tokens; the tokens behind one do not."""
    logits, following = classify(ROWS)
    assert logits.shape == (2, 3) and following.shape == (2, T, V)
    for place in range(5):
        other = ROWS.copy()
        other[:, place] = 10
        assert np.abs(classify(other)[0] - logits).min(1).max() > 1e-4
    other = ROWS.copy()
    other[:, 4] = 10
    np.testing.assert_allclose(classify(other)[1][:, :4], following[:, :4], rtol=1e-4, atol=1e-6)


def test_the_lstm_is_as_large_as_the_transformer():
    def parameters(config):
        init = gpt.build(config, Run(devices=1)).init
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, keys(0).init).params))

    counts = [parameters(gpt.READERS[name]) for name in ("transformer", "lstm")]
    assert counts == [1_057_536, 1_037_312]


TUNED = dataclasses.replace(
    TINY,
    unit="bytes",
    vocabulary=262,
    learn="labels",
    data="sst_binary",
    examples=64,
    warmup=0,
    decay=4,
)
READ = dataclasses.replace(TINY, unit="bytes", vocabulary=262)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A directory with runs of each network, as they begin; and what they have learned so far."""
    folder, states = tmp_path_factory.mktemp("read"), {}
    vocabulary = text.byte_pairs(["a film, a film"] * 3, 262).to_str(True)
    for network in CLASSIFIERS:
        config = dataclasses.replace(READ, network=network)
        run = Run(workdir=str(folder / f"{network}-seed0"), devices=1)
        header = {"experiment": "gpt", "config": dataclasses.asdict(config), "seed": 0}
        init = gpt.build(config, run).init
        states[network] = state = drawn(lambda init=init: init(keys(7).init))
        Path(run.workdir).mkdir()
        Path(run.workdir, text.FILE).write_text(vocabulary)
        Path(run.workdir, log.FILE).write_text(json.dumps({**header, "starts": [{}]}) + "\n")
        with contextlib.closing(Checkpoints(run.workdir)) as checkpoints:
            checkpoints.save(0, state, Progress())
    return folder, states


def tuning(read, name="tuned", **changes):
    config = dataclasses.replace(TUNED, **changes)
    return gpt.build(config, Run(workdir=str(read[0] / name), devices=1))


@pytest.mark.parametrize("network", CLASSIFIERS)
@needs("sst_binary")
def test_it_begins_with_what_was_learned_before(read, network):
    tuned = tuning(read, network=network, start=network + "-seed{seed}")
    found = begun(tuned).params["network"]
    jax.tree.map(np.testing.assert_array_equal, found, read[1][network].params)


@needs("sst_binary")
def test_labels_and_text_move_all_parameters(read):
    tuned = tuning(read, start="transformer-seed{seed}")
    state = jax.device_get(begun(tuned))
    batch = jax.device_get(tuned.data(0, state))
    assert batch["tokens"].shape == (8, 32) and (batch["tokens"][:, 0] == EOS).all()
    after, metrics = jax.device_get(jax.jit(tuned.step)(state, batch, keys(0).step))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, after.params, state.params)
    assert all(jax.tree.leaves(moved))
    total = metrics["loss label"] + 0.5 * metrics["loss text"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@needs("sst_binary")
def test_from_scratch_the_vocabulary_is_the_same(read):
    scratch = tuning(read, "scratch", words="transformer-seed{seed}")
    batch = jax.device_get(scratch.data(0, None))["tokens"]
    tuned = tuning(read, "tuned", start="transformer-seed{seed}")
    np.testing.assert_array_equal(jax.device_get(tuned.data(0, None))["tokens"], batch)
    names = "transformer-seed0", "scratch", "tuned"
    assert len({(read[0] / name / text.FILE).read_text() for name in names}) == 1
    with pytest.raises(UserError, match=r"no vocabulary in .*nowhere"):
        tuning(read, "other", words="nowhere").data(0, None)
    with pytest.raises(UserError, match="has 262 tokens, and the configuration asks for 260"):
        tuning(read, "other", words="transformer-seed0", vocabulary=260).data(0, None)


@needs("sst_binary")
def test_what_does_not_fit_is_one_line(read, capsys):
    with pytest.raises(UserError, match="another network"):
        begun(tuning(read, start="lstm-seed0"))
    with pytest.raises(UserError, match="are for labels"):
        gpt.build(dataclasses.replace(READ, start="transformer-seed0"), Run(devices=1))
    assert complete(Run(workdir=str(read[0] / "lstm-seed0")), "a") == 1
    assert capsys.readouterr().err.startswith("error: only a Transformer")


def test_labels_are_not_learned_in_parts():
    with pytest.raises(UserError, match="labels are learned from whole batches"):
        gpt.build(dataclasses.replace(TUNED, parts=2), Run(devices=1))


def test_the_rate_of_labels_rises_and_falls_to_nothing():
    got = jax.vmap(gpt_tuning.warmed(2.0, 10, 100))(np.array([0, 4, 9, 50, 100, 200]))
    np.testing.assert_allclose(got, [0.2, 1.0, 1.82, 1.0, 0, 0], rtol=1e-6)
    assert gpt_tuning.warmed(2.0, 0, 4)(0) == 2


# The recipe


def test_the_rate_rises_and_falls_to_a_tenth():
    rate = jax.jit(jax.vmap(gpt_recipe.scheduled(2.0, 10, 110)))
    got = rate(np.array([1, 5, 10, 60, 110, 500]))
    np.testing.assert_allclose(got, [0.2, 1.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(gpt_recipe.scheduled(2.0, 0, 100)(1), 2.0, rtol=1e-3)


def test_published_recipes_are_those_of_the_paper():
    largest = gpt.PRESETS["gpt3-175b"]
    tokens = largest.batch * largest.length
    assert tokens == pytest.approx(3.2e6, rel=0.03) and largest.rate == 0.6e-4
    assert largest.steps * tokens == pytest.approx(300e9, rel=1e-4)
    assert largest.warmup * tokens == pytest.approx(375e6, rel=1e-2)
    assert largest.decay * tokens == pytest.approx(260e9, rel=1e-4) and largest.band
    assert not gpt.PRESETS["gpt2-xl"].band and gpt.PRESETS["gpt2-xl"].batch == 512


def test_matrices_alone_decay():
    """Not the norms and biases, whose arrays have an axis for the layer."""
    experiment = gpt.build(TINY, Run(devices=1))
    params = jax.eval_shape(experiment.init, jax.random.key(0)).params
    decays = jax.tree.leaves_with_path(gpt_recipe.matrices(params))
    chosen = {jax.tree_util.keystr(path, simple=True, separator="/") for path, on in decays if on}
    assert chosen == {
        f"layers/{part}/kernel"
        for part in (
            "attention/qkv",
            "attention/project",
            "feed_forward/expand",
            "feed_forward/project",
        )
    }


# Scaling laws


def test_a_law_is_found_in_its_points():
    x = np.array([1e3, 1e4, 1e5, 1e6])
    law = gpt_claims.fit(x, 8 * x**-0.076)
    assert law.exponent == pytest.approx(0.076) and law.r2 == pytest.approx(1)
    assert law.error < 1e-6
    np.testing.assert_allclose(law.band(x), np.tile(8 * x**-0.076, (3, 1)), rtol=1e-6)


def test_the_band_holds_the_true_law_19_times_in_20():
    random, x, held, widths = np.random.default_rng(0), np.geomspace(1e3, 1e6, 6), [], []
    for _ in range(400):
        loss = 8 * x**-0.1 * np.exp(random.normal(size=6, scale=0.02))
        law = gpt_claims.fit(x, loss)
        _, low, high = law.band(np.array([3e4]))[:, 0]
        held.append((low < 8 * 3e4**-0.1 < high, abs(law.exponent - 0.1) < law.error))
        ends = law.band(x)
        widths.append(np.log(ends[2] / ends[1]))
    assert np.abs(np.mean(held, 0) - 0.95).max() < 0.03
    assert np.mean(widths, 0)[0] > 1.5 * np.mean(widths, 0)[2]  # broader at the ends


def test_the_frontier_has_what_nothing_is_better_than():
    x, loss = gpt_claims.frontier([3, 1, 2, 4, 2], [5.0, 9.0, 4.0, 3.0, 6.0])
    assert (x.tolist(), loss.tolist()) == ([1, 2, 4], [9.0, 4.0, 3.0])


def line(step, phase, **metrics):
    return {"step": step, "phase": phase, **metrics}


def made_up(config, end, **test):
    speed = {"FLOP/s": 1e9, "seconds/step": 0.1}
    lines = [line(10, "train", loss=3.0, speed=speed)]
    lines += [line(step, "evaluate", loss=end + 20 / step) for step in (10, 20, 30)]
    return Trained(config, None, [*lines, line(30, "test", loss=end, **test)], None)


@pytest.mark.parametrize("key", ["P1", "P2", "P4", "P6", "P7"])
def test_claims_read_and_draw_what_runs_have(key):
    claim = gpt.CLAIMS[key]
    test = {f"accuracy {k}-shot": 0.1 + 0.1 * k for k in gpt_text.SHOTS}
    test |= {"accuracy": 0.7, "perplexity": 20.0}
    trained = {
        arm: [made_up(config, 3 - 0.2 * i + 0.01 * seed, **test) for seed in range(2)]
        for i, (arm, config) in enumerate(claim.arms.items())
    }
    figures = {arm: claim.figures(runs[0]) for arm, runs in trained.items()}
    excess = {text: inequality(figures) for text, inequality in claim.inequalities.items()}
    assert all(np.isfinite(value) for value in excess.values())
    if key == "P2":
        assert excess["more text is better"] == pytest.approx(0.2)
    if key == "P4":
        assert list(excess.values()) == [-1]
    if key == "P6":
        assert excess["393k: 8 demonstrations gain more than 10 points"] == pytest.approx(0.7)
        assert excess["393k gains more than 3k"] == pytest.approx(0)
    figure = Figure()
    claim.picture(trained, figure)
    assert all(axes.has_data() for axes in figure.axes) and figure.axes
