"""The experiments of translation: schedules, averages, pictures, and the command `translate`."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import forked
import jax
import numpy as np
import pytest
from every import BRIEF

from experiments import attention, seq2seq, transformer, translating, translating_claims
from jaxhist import UserError, claims, cli, devices, log, plots
from jaxhist.algorithm import State, keys
from jaxhist.claims import Trained
from jaxhist.data import text, translation
from jaxhist.packed import EOS, PAD
from jaxhist.train import Run, train

TINY = {"vocabulary": (60,), "length": 32, "beams": 1, **BRIEF}  # as in tests/every.py
SMALL = dataclasses.replace(transformer.PRESETS["small"], layers=1, width=16, hidden=16, **TINY)


@pytest.fixture(autouse=True, scope="module")
def short():
    """Numbers of few digits, few of them held out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "HELD_OUT", 16)
        patch.setattr(translation, "DIGITS", 4)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that has hardly learned anything: its configuration, and its run."""
    config = dataclasses.replace(attention.PRESETS["small"], n=8, m=4, l=4, **TINY)
    run = Run(workdir=str(tmp_path_factory.mktemp("trained") / "run"), devices=1)
    identity = {"experiment": "attention", "config": dataclasses.asdict(config)}
    train(attention.build(config, run), run, identity)
    return config, run


# Schedules


def test_the_rate_is_equation_3():
    rate = jax.jit(transformer.warmed(512, 4000))
    np.testing.assert_allclose(rate(4000.0), 6.9877124e-4, rtol=1e-6)  # the highest
    np.testing.assert_allclose(rate(1.0), 6.9877124e-4 / 4000, rtol=1e-6)
    np.testing.assert_allclose(rate(16_000.0), 6.9877124e-4 / 2, rtol=1e-6)
    assert rate(3999.0) < rate(4000.0) > rate(4001.0)


def test_the_first_step_has_the_rate_of_step_1():
    """Adam's first step is as long as the rate, for every weight that has a gradient."""
    config, run = dataclasses.replace(SMALL, dropout=0.0, warmup=10, rate=2.0), Run(devices=1)
    experiment, key = transformer.build(config, run), keys(0)
    shapes, random = jax.eval_shape(experiment.init, key.init), np.random.default_rng(0)
    before = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    normal = lambda a: random.normal(size=a.shape, scale=0.3).astype(np.float32)
    before = before.replace(params=jax.tree.map(normal, shapes.params))
    batch = devices.put(devices.mesh(1), experiment.data(0, before), experiment.batch)
    after, _ = jax.device_get(jax.jit(experiment.step)(before, batch, key.step))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.params)
    rate = 2 * 16**-0.5 * 10**-1.5
    np.testing.assert_allclose(jax.tree.leaves(moved), rate, rtol=1e-2)


def test_the_rate_is_halved_every_half_epoch_after_five():
    steps = 7500  # 1000 to an epoch
    rate = np.asarray(jax.jit(jax.vmap(seq2seq.halved(0.7, steps)))(np.arange(steps)))
    np.testing.assert_allclose(rate[:5000], 0.7, rtol=1e-6)
    halves = 0.7 / 2 ** np.arange(1, 6)
    np.testing.assert_allclose(rate[5000:].reshape(5, 500), halves[:, None] + np.zeros(500), 1e-6)


@pytest.mark.parametrize(
    "average, every, steps", [(1, 1, 4), (1, 3, 7), (3, 2, 12), (4, 3, 12), (5, 1, 5), (2, 4, 11)]
)
def test_what_is_tested_is_the_mean_of_the_last_states(average, every, steps):
    config = dataclasses.replace(SMALL, average=average, average_every=every, steps=steps)
    mean = jax.jit(lambda state: transformer.averaged(state, config))
    states = np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32)
    extra, found = np.zeros(3, np.float32), []
    for step, params in enumerate(states, 1):
        extra = mean(State(np.int32(step), params, (), extra))
        found.append(extra)
    last = states[::-1][: average * every : every]
    assert len(last) == average
    np.testing.assert_allclose(found[-1], last.mean(0), rtol=1e-5, atol=1e-6)
    first = steps - (average - 1) * every  # up to here they are the parameters
    np.testing.assert_array_equal(found[:first], states[:first])


def test_no_more_states_are_averaged_than_there_are():
    changes = {"average": 5, "average_every": 200, "steps": 999}
    with pytest.raises(UserError, match="average times average_every must be at most steps 999"):
        transformer.build(dataclasses.replace(SMALL, **changes), Run(devices=1))


# Data


def sentences(row):
    """Of a row, without padding."""
    return [part.tolist() for part in np.split(row, np.nonzero(row == EOS)[0] + 1)[:-1]]


def test_seq2seq_reads_its_sources_from_the_end():
    config = dataclasses.replace(seq2seq.PRESETS["small"], n=8, **TINY)
    plain, turned = (
        seq2seq.translator(dataclasses.replace(config, reverse=reverse), Run(devices=1)).corpus
        for reverse in (False, True)
    )
    batch, other = (jax.device_get(corpus.train(0, None)) for corpus in (plain, turned))
    np.testing.assert_array_equal(batch["target"], other["target"])
    for row, reversed_row in zip(batch["source"], other["source"], strict=True):
        want = [[*sentence[-2::-1], EOS] for sentence in sentences(row)]
        assert sentences(reversed_row) == want and want
    assert (batch["source"] != other["source"]).any()
    ((*words, end),) = turned.encode(["twenty-one"])  # also what `translate` reads
    assert ([*words[::-1], end],) == (*plain.encode(["twenty-one"]),) and end == EOS != PAD
    assert config.reverse and seq2seq.PRESETS["paper"].reverse


def test_a_run_that_goes_on_reads_its_vocabulary(trained, monkeypatch):
    config, run = trained
    made = (Path(run.workdir) / "vocabulary.json").read_text()

    def never(*_):
        raise AssertionError("another vocabulary is made")

    monkeypatch.setattr(text, "subwords", never)
    corpus = attention.translator(config, run).corpus
    assert corpus.vocabularies()[0].to_str(pretty=True) == made
    with pytest.raises(AssertionError, match="another vocabulary"):
        attention.translator(config, dataclasses.replace(run, workdir="")).corpus.vocabularies()


# The command `translate`


def translate(*arguments, said=""):
    """As a user does."""
    return forked.run("experiments.attention", "translate", *arguments, said=said)


def test_every_sentence_becomes_a_line(trained):
    """Of the arguments, or of standard input; the same sentence the same line."""
    _, run = trained
    of_arguments = translate(run.workdir, "seven", "four hundred and two", "seven", "--beams", "2")
    lines = of_arguments.stdout.split("\n")
    assert (of_arguments.returncode, of_arguments.stderr, len(lines)) == (0, "", 3 + 1)
    assert lines[0] == lines[2] and lines[-1] == ""
    said = "four hundred and two\n\n  seven \n \n"  # an empty line stays one
    of_input = translate(run.workdir, "--beams", "2", said=said)
    assert (of_input.returncode, of_input.stderr) == (0, "")
    assert of_input.stdout.split("\n") == [lines[1], "", lines[0], "", ""]


@pytest.mark.parametrize(
    "script, arguments, said, says",
    [
        (attention, [], "seven\n\xff\n", "line 2 of standard input is not UTF-8 (invalid start"),
        (attention, [], "\n \n", "all lines are empty, or there is none"),
        (attention, [], "", "all lines are empty, or there is none"),
        (attention, ["seven", "--beams", "0"], "", "0 beams are too few"),
        (transformer, ["seven"], "", "holds a run of attention, not of transformer"),
    ],
    ids=["other bytes", "empty lines", "nothing", "no beams", "a run of another experiment"],
)
def test_what_cannot_be_translated_is_one_line(
    script, arguments, said, says, trained, monkeypatch, capsys
):
    name = script.__name__.split(".")[1]
    monkeypatch.setattr("sys.argv", [name, "translate", trained[1].workdir, *arguments])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said.encode("latin-1"))))
    command = translating.command(script.translator)
    with pytest.raises(SystemExit) as stop:
        cli.main(script.build, script.PRESETS, script.CLAIMS, {"translate": command})
    out, error = capsys.readouterr()
    assert (stop.value.code, out) == (1, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_what_a_claim_compares_with_translates_too(trained, tmp_path, monkeypatch, capsys):
    """A recurrent network among the arms of the Transformer, by the script of the latter."""
    config, run = trained
    copy = Path(shutil.copytree(run.workdir, tmp_path / "recurrent-seed0"))
    header, *lines = log.read(copy)
    header |= log.identity("transformer", config)
    (copy / log.FILE).write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))
    of = transformer.build_any, transformer.PRESETS, transformer.CLAIMS
    commands = {"translate": translating.command(transformer.translator_any)}

    def said(*arguments):
        monkeypatch.setattr("sys.argv", ["transformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main(*of, commands)
        out, error = capsys.readouterr()
        assert stop.value.code == 0, error
        return out

    evaluated = json.loads(said("evaluate", copy))
    assert evaluated["test"]["perplexity"] == pytest.approx(lines[-1]["perplexity"], rel=1e-5)
    assert said("translate", copy, "seven", "--beams", 1).count("\n") == 1


# Figures of claims


def test_what_claims_measure(trained, monkeypatch):
    """Sentences in rows of their own have the perplexity that they have in rows with others."""
    config, run = trained[0], dataclasses.replace(trained[1], devices=0)
    state = lambda: claims.tested(attention.build(config, run), run)
    one = Trained(config, run, log.read(run.workdir), state)
    parts = {"up to 3": (1, 3), "more": (4, 1000)}
    monkeypatch.setattr(translating_claims, "LENGTHS", parts)
    by_length = translating_claims.by_length(attention.translator, one)
    assert by_length.keys() == {
        f"{metric} {part}".strip() for metric in ("BLEU", "perplexity") for part in ("", *parts)
    }
    np.testing.assert_allclose(by_length["perplexity"], one.lines[-1]["perplexity"], rtol=1e-4)
    perplexities = [by_length[f"perplexity {part}"] for part in parts]
    assert min(perplexities) < by_length["perplexity"] < max(perplexities)
    beams = translating_claims.beams(attention.translator, (1, 2), one)
    assert beams.keys() == {"BLEU 1", "log P 1", "BLEU 2", "log P 2"} and beams["log P 1"] < 0
    alignment = translating_claims.alignment(attention.translator, one)
    # It looks at everything alike, as yet: the largest weight is 1 / S, or little more.
    assert 0.5 < alignment["largest weight x S / 2"] < 0.55 and abs(alignment["correlation"]) < 1


# Pictures


def test_what_is_looked_at_is_white():
    weights = np.array([[1.0, 0, 0], [0, 1, 0]])
    draw = lambda weights: plots.attention({"head": weights}, ["a", "b", "c"], ["x", "y"])
    picture, blank, full = draw(weights), draw(0 * weights), draw(np.ones((2, 3)))
    assert picture.dtype == np.uint8 and picture.shape == (200, 220, 3)  # 0.2 inches to a token
    cells = (blank == 0).all(-1) & (full == 255).all(-1)
    height, width = (len(np.flatnonzero(cells.any(axis))) for axis in (1, 0))
    assert 1.2 < width / height < 1.8 and width > 60
    top, left = (np.flatnonzero(cells.any(axis))[0] for axis in (1, 0))
    for t, s in np.ndindex(2, 3):
        middle = picture[top + (2 * t + 1) * height // 4, left + (2 * s + 1) * width // 6]
        assert (middle == 255 * weights[t, s]).all()


def test_panels_and_bars_have_room():
    panels = {f"head {i}": np.eye(12) for i in range(8)}
    words = ["word"] * 12
    eight = plots.attention(panels, words, words)
    assert eight.dtype == np.uint8 and eight.shape == (2 * 400, 4 * 400, 3)
    one, other = (plots.bars({"1 to 3": 5.0, "4": v}, "BLEU", "words") for v in (5.0, 10.0))
    assert one.dtype == np.uint8 and one.shape == other.shape == (400, 600, 3)
    blue = [(picture == [31, 119, 180]).all(-1).sum(0) for picture in (one, other)]
    half = blue[1][: blue[1].argmax()].max() / blue[1].max()
    assert len(set(blue[0][blue[0] > 20])) == 1 and 0.45 < half < 0.55
