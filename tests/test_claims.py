import json
import pkgutil
from importlib import import_module

import numpy as np
import pytest
import scipy.stats
from test_cli import assert_one_line
from tiny import tiny

import experiments
from experiments import gan, gan_mixture, identity_mappings, resnet
from jaxhist import UserError, claims, cli, log
from jaxhist.claims import Check, Claim, Equation, judge
from jaxhist.train import Interrupted

HOLDS, FAILS, UNSURE = [1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [3.0, -0.5, -1.0]


@pytest.mark.parametrize(
    ("excesses", "verdict"),
    [
        ([HOLDS], "reproduced"),
        ([HOLDS, HOLDS], "reproduced"),
        ([HOLDS, UNSURE], "direction only"),
        ([HOLDS, FAILS], "not reproduced"),
        ([FAILS], "not reproduced"),
        ([[1.0]], "direction only"),  # one seed proves nothing
        ([[1.0, 1.0, 1.0]], "direction only"),  # nor does what does not depend on the seed
        ([[0.0, 0.0]], "not reproduced"),
    ],
)
def test_verdicts(excesses, verdict):
    assert judge(excesses)[0] == verdict


def test_the_p_value_is_that_of_the_paired_one_sided_t_test_and_the_largest_counts():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 5), rng.normal(0, 1, 5)
    margin = 0.3
    paired = scipy.stats.ttest_rel(a - margin, b, alternative="greater").pvalue
    assert np.isclose(judge([list(a - b - margin)])[1], paired)
    assert np.isclose(judge([HOLDS, list(a - b - margin)])[1], paired)


def error(trained):
    return {"error": trained.lines[-1]["error"]}


def claim(**changes):
    """More steps bring a linear regression nearer to its solution."""
    return Claim(
        **{
            "says": "longer is better",
            "paper": "none",
            "arms": {"short": resnet.Config(steps=4), "long": resnet.Config(steps=8)},
            "figures": error,
            "inequalities": {"long < short": lambda by: by["short"]["error"] - by["long"]["error"]},
            "picture": lambda trained, figure: figure.subplots().plot([0, 1]),
            **changes,
        }
    )


def build(config, run):
    # Each seed starts elsewhere, so that the differences scatter.
    changed = tiny(steps=config.steps, evaluate_every=config.steps)
    moved = lambda key: changed.init(key).replace(params=np.full((3, 1), 0.1 * run.seed))
    return changed._replace(init=moved)


@pytest.fixture
def check(tmp_path):
    def run(chosen, seeds=3, interrupted=lambda: False):
        options = Check(seeds=seeds, workdir=f"{tmp_path}/runs", output=f"{tmp_path}/results")
        claims.check("tiny", chosen, build, options, "the command", interrupted)
        return json.loads((tmp_path / "results" / "tiny.json").read_text())

    return run


def test_arms_are_trained_over_seeds_and_judged_in_pairs(check, tmp_path, capsys):
    result = check({"T1": claim()})["T1"]
    assert result["verdict"] == "reproduced" and result["p"] < 0.05
    figures = result["figures"]
    assert len(figures["short"]["error"]) == len(figures["long"]["error"]) == result["seeds"] == 3
    assert len(set(figures["short"]["error"])) == 3
    excess = result["inequalities"]["long < short"]["excess"]
    np.testing.assert_allclose(
        excess, np.subtract(figures["short"]["error"], figures["long"]["error"])
    )
    assert result["command"] == "the command" and "jax" in result["versions"]
    assert result["arms"]["long"]["steps"] == 8 and result["seconds"] > 0
    assert (tmp_path / "results" / "tiny-T1.png").read_bytes().startswith(b"\x89PNG")
    assert "reproduced, p = " in " ".join(capsys.readouterr().out.split())


def test_what_is_trained_is_not_trained_again_and_other_claims_stay(check, monkeypatch):
    check({"T1": claim()})
    monkeypatch.setattr(claims, "train", None)
    both = check({"T2": claim(inequalities={"short < long": lambda by: -1.0 - len(by)})})
    assert both["T1"]["verdict"] == "reproduced"
    assert both["T2"]["verdict"] == "not reproduced"


def test_an_interrupted_check_goes_on(check):
    with pytest.raises(Interrupted):
        check({"T1": claim()}, interrupted=lambda: True)
    assert check({"T1": claim()})["T1"]["verdict"] == "reproduced"


def test_runs_of_another_configuration_are_refused(check):
    check({"T1": claim()}, seeds=1)
    arms = {"short": resnet.Config(steps=5), "long": resnet.Config(steps=8)}
    with pytest.raises(UserError, match="steps is 4 there, 5 here"):
        check({"T1": claim(arms=arms)}, seeds=1)


def test_damaged_results_are_refused_before_anything_is_trained(check, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny.json").write_text('{"T1": ')
    monkeypatch.setattr(claims, "train", None)
    with pytest.raises(UserError, match=r"tiny\.json is damaged"):
        check({"T1": claim()})


@pytest.mark.parametrize(("left", "verdict"), [(0.5, "exact"), (0.6, "not exact")])
def test_an_equation_is_exact_or_not(check, left, verdict):
    equation = Equation("a half", "none", lambda: {"halves": (left, 0.5)})
    assert check({"T0": equation})["T0"]["verdict"] == verdict


def test_an_identity_passes_the_gradient_and_a_factor_shrinks_it():
    sides = identity_mappings.gradients()
    assert sides["identity"] == (1.0, 1.0)
    assert np.isclose(*sides["scaling"], rtol=1e-6) and sides["scaling"][1] == 2.0**-54


SCRIPTS = [
    import_module(module.name)
    for module in pkgutil.iter_modules(experiments.__path__, "experiments.")
]
WITH_CLAIMS = [script for script in SCRIPTS if hasattr(script, "CLAIMS")]


def arms(script):
    """Of all its claims."""
    every = [one.arms for one in script.CLAIMS.values() if isinstance(one, Claim)]
    return [(arm, config) for of_claim in every for arm, config in of_claim.items()]


@pytest.mark.parametrize("script", WITH_CLAIMS, ids=lambda script: script.__name__)
def test_a_log_says_of_which_type_a_configuration_is(script):
    """And without its name, in an older log, the fields say it."""
    known = cli.types(script.PRESETS, script.CLAIMS)
    for _, config in [*script.PRESETS.items(), *arms(script)]:
        header = json.loads(json.dumps(log.identity("one", config)))
        assert log.configuration("run", header, known) == config
        del header["type"]
        assert log.configuration("run", header, known) == config


def test_a_run_of_another_type_is_evaluated(command, tmp_path):
    """A claim of GAN compares networks that learn a mixture on a line; its script evaluates them,
    and goes on with a run that is older than the names of types."""
    config = gan_mixture.Mixture(learns=True, batch=16, steps=2, evaluate_every=2)
    one = claim(
        arms={"mixture": config},
        figures=lambda trained: {"V": trained.lines[-1]["V"]},
        inequalities={"V < 0": lambda by: -by["mixture"]["V"]},
    )
    options = Check(seeds=1, workdir=f"{tmp_path}/runs", output=f"{tmp_path}/results")
    check = lambda: claims.check("gan", {"N2": one}, gan.build, options, "", lambda: False)
    check()
    run = tmp_path / "runs" / "mixture-seed0"
    header, *lines = log.read(run)
    assert (header["experiment"], header["type"]) == ("gan", "gan_mixture.Mixture")
    said = json.loads(command("evaluate", run, experiment="gan", check=0).stdout)
    assert said["step"] == 2 and said["test"]["V"] == pytest.approx(lines[-1]["V"])
    del header["type"]
    text = "".join(json.dumps(line) + "\n" for line in [header, *lines])
    (run / log.FILE).write_text(text)
    assert json.loads(command("evaluate", run, experiment="gan", check=0).stdout) == said
    check()
    assert (run / log.FILE).read_text() == text
    (run / log.FILE).write_text(text.replace('"learns"', '"learned"'))
    process = command("evaluate", run, experiment="gan")
    assert_one_line(process, "a run of another version of gan, whose configuration has learned")


@pytest.mark.parametrize("script", WITH_CLAIMS, ids=lambda script: script.__name__)
def test_claims_that_share_an_arm_share_its_configuration(script):
    """Since they share its runs."""
    known = {}
    for arm, config in arms(script):
        assert known.setdefault(arm, config) == config
    for one in script.CLAIMS.values():
        if isinstance(one, Claim):
            assert one.says.endswith(".") and one.paper


def test_unknown_claim(command):
    assert_one_line(command("claims", "--only", "R9"), "no claim 'R9'", "R1, R2, R3, R6", code=2)
