"""BERT is trained, then asked, then trained with labels."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs
from every import BRIEF, brief
from tiny import begun

from experiments import bert as experiment
from experiments import bert_tuning, bert_words
from jaxhist import UserError, claims, cli, devices, packed
from jaxhist.algorithm import keys
from jaxhist.data import documents, masked, wordpiece
from jaxhist.models.bert import PreTraining, Size
from jaxhist.train import Run, train

SPECIAL = wordpiece.Special(0, 1, 2, 3, 4)

# As in tests/every.py, so that it is compiled once.
TINY = dataclasses.replace(
    experiment.PRESETS["small"],
    vocabulary=300,
    layers=1,
    width=8,
    length=32,
    warmup=0,
    **BRIEF,
)
TUNED = dataclasses.replace(TINY, learn="labels", data="sst_binary", start="words-seed{seed}")


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Documents and examples are few."""
    with pytest.MonkeyPatch.context() as patch:
        brief(patch.setattr)
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A directory with a run of few steps."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run(workdir=str(folder / "words-seed0"), devices=1)
    identity = {"experiment": "bert", "config": dataclasses.asdict(TINY)}
    train(experiment.build(TINY, run), run, identity)
    return folder


def batch_of(step, seed=0, **changes):
    run = Run(devices=1, seed=seed)
    data = experiment.build(dataclasses.replace(TINY, **changes), run).data
    return jax.device_get(data(step, None))


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    run = Run(devices=1)
    data = experiment.build(TINY, run).data
    batches = [jax.device_get(data(step, None)) for step in (0, 1, 500)]
    jax.tree.map(np.testing.assert_array_equal, batches[2], batch_of(500))
    same = lambda a, b: np.array_equal(a["tokens"], b["tokens"])
    assert not same(batches[0], batches[1]) and not same(batches[0], batch_of(0, seed=1))


def test_left_to_right_nothing_is_hidden():
    batch = batch_of(0, left_to_right=True)
    assert (batch["tokens"] != SPECIAL.mask).all()
    np.testing.assert_array_equal(batch["label"], batch["tokens"][:, 1:])
    np.testing.assert_array_equal(batch["position"][0], np.arange(31))


def test_without_pairs_every_segment_follows():
    assert (batch_of(0, pairs=False)["follows"] == 1).all()
    assert 0 < np.mean([batch_of(0)["follows"], batch_of(1)["follows"]]) < 1


@pytest.mark.parametrize("left_to_right", [False, True])
def test_of_what_is_held_out_one_word_is_hidden_alone(left_to_right):
    make = lambda: wordpiece.trained(documents.python("train"), 300, cased=False)
    corpus = masked.corpus(
        documents.python, make, 300, 8, 32, True, left_to_right, 0, devices.mesh(1)
    )
    first, second = corpus.held_out("validation")
    assert {name: array.shape for name, array in first.items() if name != "alone"} == {
        name: array.shape for name, array in corpus.batch.items()
    }
    for batch in (first["alone"], second["alone"]):
        rows, places = np.nonzero(batch["tokens"] == SPECIAL.mask)
        np.testing.assert_array_equal(rows, np.arange(8))
        np.testing.assert_array_equal(places, batch["position"][:, 0] + left_to_right)
        assert (batch["label"] > SPECIAL.mask).any() and (batch["label"] != packed.PAD).all()


def test_the_rate_rises_then_falls_to_nothing():
    rate = bert_tuning.warmed(1e-4, 10_000, 1_000_000)
    at = jax.jit(rate)(np.array([0, 5000, 500_000, 10**6, 10**7]))
    np.testing.assert_allclose(at, [0, 5e-5, 5e-5, 0, 0], atol=1e-12)
    assert bert_tuning.warmed(1.0, 0, 4)(jnp.array(0)) == 1


def test_decay_is_for_matrices_alone():
    tokens = [jnp.zeros((1, 8), jnp.int32)] * 3
    model = PreTraining(40, Size(2, 8, 2))
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), *tokens)["params"]
    mask = jax.tree.leaves_with_path(bert_tuning.matrices(params))
    decayed = {jax.tree_util.keystr(path[-1:]) for path, chosen in mask if chosen}
    others = {jax.tree_util.keystr(path[-1:]) for path, chosen in mask if not chosen}
    assert decayed == {"['kernel']", "['embedding']"} and others == {"['bias']", "['scale']"}


@pytest.mark.parametrize("corrected, first", [(False, 0.1 / 0.001**0.5), (True, 1.0)])
def test_the_first_step_without_and_with_correction(corrected, first):
    """In the direction of -sign of the gradient, and 0.01 of the weight."""
    config = dataclasses.replace(TINY, corrected=corrected, rate=0.5, warmup=0, steps=10**6)
    optimizer = bert_tuning.optimizer(config)
    params = {"kernel": np.full((2, 2), 3.0), "bias": np.full(2, 3.0)}
    gradient = {"kernel": np.full((2, 2), 0.3), "bias": np.full(2, -0.3)}
    update = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])
    updates = update(gradient, params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * (first + 0.03), rtol=1e-3)
    np.testing.assert_allclose(updates["bias"], 0.5 * first, rtol=1e-3)


def words(pretrained):
    """The run that others begin with."""
    run = Run(workdir=str(pretrained / "words-seed0"), devices=1)
    return experiment.build(TINY, run), run


@needs("sst_binary")
def test_labels_are_learned_from_what_was_learned_before(pretrained):
    run = Run(workdir=str(pretrained / "tuned"), devices=1)
    build = lambda **changes: experiment.build(dataclasses.replace(TUNED, **changes), run)
    tuned, scratch = build(examples=50), build(start="", words="words-seed{seed}")
    found = claims.tested(*words(pretrained)).params
    state, scratch = jax.device_get((begun(tuned), begun(scratch)))
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    for part in ("encoder", "pooler"):
        assert same(state.params[part], found[part])
        assert not same(scratch.params[part], found[part])
    assert same(scratch.params["output"], state.params["output"])
    batch = jax.device_get(tuned.data(0, state))
    assert (
        batch["tokens"].shape == (TINY.batch, 32) and (batch["tokens"][:, 0] == SPECIAL.begin).all()
    )
    names = [(pretrained / run / "vocabulary.json").read_text() for run in ("words-seed0", "tuned")]
    assert names[0] == names[1]  # its own copy
    after, _ = jax.jit(tuned.step)(state, batch, keys(0).step)
    assert not same(jax.device_get(after.params["encoder"]), state.params["encoder"])
    tested = tuned.test(after)
    assert tested.keys() == {"loss", "accuracy", "standard error", "correlation"}
    of_100 = (tested["accuracy"] * (1 - tested["accuracy"]) / 100) ** 0.5
    np.testing.assert_allclose(tested["standard error"], of_100)


def test_what_goes_on_has_the_moments_and_the_place_in_the_schedule(pretrained):
    config = dataclasses.replace(TINY, start="words-seed0", length=64, decay=100)
    run = Run(workdir=str(pretrained / "longer"), devices=1)
    state = begun(experiment.build(config, run))
    before, of = words(pretrained)
    found = claims.tested(before._replace(measured=lambda state: state), of)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, found.opt_state)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert state.step == 0 and counts and all(count == TINY.steps for count in counts)


def test_the_default_decay_counts_the_steps_of_the_run_before(pretrained):
    """Six steps, then six: the rate is half of its peak in the first step of the second run."""
    run = Run(workdir=str(pretrained / "more"), devices=1)
    config = dataclasses.replace(TINY, start="words-seed0")

    def moved(**changes):
        learning = experiment.build(dataclasses.replace(config, **changes), run)
        state = begun(learning)
        after, _ = jax.jit(learning.step)(state, learning.data(0, state), keys(0).step)
        return jax.tree.map(np.subtract, after.params, state.params)

    jax.tree.map(np.testing.assert_allclose, moved(), moved(decay=12))
    assert max(np.abs(x).max() for x in jax.tree.leaves(moved(decay=6))) == 0


@pytest.mark.parametrize(
    "changes, says",
    [({"start": "nowhere"}, "no run in .*nowhere"), ({"width": 16}, "another network")],
    ids=["missing", "another size"],
)
@needs("sst_binary")
def test_a_start_that_does_not_fit_is_one_line(pretrained, changes, says):
    run = Run(workdir=str(pretrained / "bad"), devices=1)
    with pytest.raises(UserError, match=says):
        begun(experiment.build(dataclasses.replace(TUNED, **changes), run))


# The command `fill`.


def fill(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["bert", "fill", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main(experiment.build, experiment.PRESETS, {}, {"fill": bert_words.fill})
    return stop.value.code


def test_every_mask_is_filled(pretrained, monkeypatch, capsys):
    sentence = "The [MASK] of a [MASK]."
    assert fill(monkeypatch, pretrained / "words-seed0", sentence, "--top", 3) == 0
    first, second = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    for lines in (first, second):
        chances = [float(line.split()[0]) for line in lines]
        assert len(lines) == 3 and chances == sorted(chances)[::-1] and 0 < sum(chances) <= 1
    assert fill(monkeypatch, pretrained / "words-seed0", "[MASK]" + "!" * TINY.length) == 0
    told = f"the sentence has {TINY.length + 3} tokens; the network knows rows of {TINY.length}"
    assert capsys.readouterr().err == f"warning: {told}\n"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nothing is hidden"], r"write \[MASK\] in the place of a word"),
        (["[MASK]", "--top", "0"], "there are no 0 guesses"),
    ],
)
def test_what_cannot_be_filled_is_one_line(pretrained, monkeypatch, capsys, arguments, says):
    assert fill(monkeypatch, pretrained / "words-seed0", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(says, error)


# Claims.


def test_claims_compare_what_they_say():
    by = {"both": 50.0, "left": 40.0, "tiny": 65.0, "smaller": 60.0}
    by = {arm: {"alone": value, "perplexity": value} for arm, value in by.items()}
    accuracies = {"both tuned": 80.0, "left tuned": 79.0, "scratch all": 78.0, "tiny tuned": 80.0}
    accuracies |= {"smaller tuned": 79.5}
    accuracies |= {"pre-trained 100": 70.0, "scratch 100": 60.0, "pre-trained 1000": 75.0}
    accuracies |= {"scratch 1000": 70.0, "pre-trained all": 79.5}
    error = lambda accuracy: accuracy / 50  # whatever it is
    of_labels = lambda accuracy: {"accuracy": accuracy, "standard error": error(accuracy)}
    by |= {arm: of_labels(accuracy) for arm, accuracy in accuracies.items()}
    of = lambda key: [excess(by) for excess in experiment.CLAIMS[key].inequalities.values()]
    assert of("E1") == [7, 1] and of("E2") == [9, 4, 8.5]
    np.testing.assert_allclose(of("E3"), [5, 10, error(80) - 0.5, error(79.5) + 0.5])
