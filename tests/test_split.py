"""A run whose state is split over devices is opened split, and only what is wanted is read."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from every import EXPERIMENTS, brief

from jaxhist import cli, log
from jaxhist.devices import WHOLE, Axes
from jaxhist.train import Run, train

(MODULE, CONFIG) = next(of for name, *of in EXPERIMENTS if name == "gpt letters")
SPLIT = Axes(fsdp=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    brief(monkeypatch.setattr)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of a language model, on eight devices, of which four share the state."""
    run = Run(workdir=str(tmp_path_factory.mktemp("split") / "run"), mesh=SPLIT)
    with pytest.MonkeyPatch.context() as patch:
        brief(patch.setattr)
        train(MODULE.build(CONFIG, run), run, {"experiment": "gpt", "config": asdict(CONFIG)})
    return run


def opened(monkeypatch, run, *arguments):
    """What a command gets of a run."""
    found = SimpleNamespace()

    def look(config, run, state, word: str = ""):
        """Look.

        Args:
          config: of the run.
          run: the run.
          state: that was tested.
          word: of the command's own.
        """
        found.run, found.state, found.word = run, state, word

    monkeypatch.setattr("sys.argv", ["gpt", "look", run.workdir, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main(MODULE.build, MODULE.PRESETS, MODULE.CLAIMS, {"look": look})
    assert stop.value.code == 0
    return found


@pytest.mark.parametrize(
    "arguments, mesh, parts",
    [
        ([], SPLIT, 4),
        (["--run.devices", 4], SPLIT, 4),
        (["--run.mesh.fsdp", 2, "--word", "a"], Axes(fsdp=2), 2),
        (["--run.devices", 2], WHOLE, 1),  # too few for what it was trained on
    ],
)
def test_a_command_gets_a_state_that_is_split(trained, monkeypatch, arguments, mesh, parts):
    found = opened(monkeypatch, trained, *arguments)
    assert found.run.mesh == mesh and found.word == ("a" if "a" in arguments else "")
    largest = max(jax.tree.leaves(found.state.params), key=lambda leaf: leaf.nbytes)
    on_each = max(part.data.nbytes for part in largest.addressable_shards)
    assert on_each == largest.nbytes // parts
    assert jax.tree.leaves(found.state.opt_state) == []


def test_what_is_measured_is_the_same_however_it_is_split(trained, monkeypatch, capsys):
    test, measured = log.read(trained.workdir)[-1], []
    for arguments in ([], ["--run.devices", "1"], ["--run.mesh.fsdp", "8"]):
        monkeypatch.setattr("sys.argv", ["gpt", "evaluate", trained.workdir, *arguments])
        with pytest.raises(SystemExit):
            cli.main(MODULE.build, MODULE.PRESETS, MODULE.CLAIMS)
        measured.append(json.loads(capsys.readouterr().out)["test"])
    for one in measured:
        np.testing.assert_allclose(one["loss"], test["loss"], rtol=1e-5)


def test_an_option_that_evaluate_does_not_have(trained, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpt", "evaluate", trained.workdir, "--depth", "8"])
    with pytest.raises(SystemExit) as stop:
        cli.main(MODULE.build, MODULE.PRESETS, MODULE.CLAIMS)
    assert stop.value.code == 2 and "evaluate DIR has no --depth 8" in capsys.readouterr().err
