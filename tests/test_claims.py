import collections
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
from jaxhist.finite import Diverged
from jaxhist.stopping import Interrupted

HOLDS, FAILS, UNSURE = [1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [3.0, -0.5, -1.0]
INF = float("inf")


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
        # The worse side diverges: in all seeds of five, of three, and beside a seed that fails.
        ([[INF] * 5], "reproduced"),
        ([[INF, 0.1, 2.0, INF, 0.3]], "reproduced"),
        ([[INF] * 3], "direction only"),
        ([[INF, INF, INF, INF, -0.1]], "direction only"),
        ([[INF] * 5, FAILS], "not reproduced"),
        # The better side does, once.
        ([[-INF, 1.0, 1.0, 1.0, 1.1]], "not reproduced"),
        ([[-INF] + [INF] * 20], "not reproduced"),
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


def test_of_infinite_excesses_the_p_value_is_that_of_the_sign_test():
    assert judge([[INF] * 5])[1] == pytest.approx(0.5**5)
    assert judge([[INF, 1.0, 2.0, 3.0, -4.0]])[1] == pytest.approx(6 * 0.5**5)
    assert judge([[INF] * 20 + [-INF]])[1] == 1


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
    def run(chosen, seeds=3, interrupted=lambda: False, build=build):
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


def wild(config, run):
    """Where it is to train for 8 steps it diverges at step 6; what begins with it, before that."""
    experiment = build(config, run)

    def data(step, state):
        good = experiment.data(step, state)
        return good if step < 6 else good | {"y": good["y"] * np.float32("inf")}

    return experiment._replace(data=data)


def strict(text):
    """JSON as any reader has it."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_an_arm_that_diverges_is_a_figure(check, tmp_path, capsys, monkeypatch):
    """And the other claims are checked. Asked again, it is not trained again."""
    longer = claim()
    shorter = claim(
        inequalities={
            "short < long": lambda by: by["long"]["error"] - by["short"]["error"],
            "short < 100": lambda by: 100 - by["short"]["error"],
        },
        diverged={"error": INF},
    )
    chosen = {"T1": longer, "T2": shorter, "T3": claim(arms={"short": resnet.Config(steps=4)})}
    chosen["T3"] = chosen["T3"]._replace(
        inequalities={"short > 0": lambda by: by["short"]["error"]}
    )
    check(chosen, seeds=5, build=wild)
    text, said = (tmp_path / "results" / "tiny.json").read_text(), capsys.readouterr().out
    both = strict(text)
    assert both["T1"]["diverged"] == both["T2"]["diverged"] == {"long": [6] * 5}
    # What the claim says nothing of cannot be compared.
    assert both["T1"]["verdict"] == "not reproduced" and both["T1"]["p"] == 1
    assert both["T1"]["figures"]["long"] == {}
    assert len(set(both["T1"]["figures"]["short"]["error"])) == 5
    # The other one's error is infinite, in all seeds.
    inequality = both["T2"]["inequalities"]["short < long"]
    assert inequality == {"excess": [None] * 5, "mean": None, "p": 0.5**5, "holds": [True] * 5}
    assert both["T2"]["figures"]["long"] == {"error": [None] * 5}
    assert both["T2"]["verdict"] == "reproduced"
    assert both["T2"]["inequalities"]["short < 100"].keys() == {"excess", "mean", "p"}
    assert both["T3"]["verdict"] == "reproduced" and "diverged" not in both["T3"]
    steps = ", ".join(f"6 (seed {seed})" for seed in range(5))
    assert said.count(f"diverged at step {steps}") == 2 and "short < long: in 5 of 5 seeds" in said
    for name in "T1", "T2":
        assert (tmp_path / "results" / f"tiny-{name}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(claims, "train", None)
    again = check(chosen, seeds=5, build=wild)
    assert [again[name]["p"] for name in again] == [both[name]["p"] for name in both]


def test_an_arm_that_begins_with_one_that_diverged_is_a_figure_too(check, tmp_path):
    def init(key):
        raise Diverged(0, "what it begins with has diverged")

    late = lambda config, run: (
        build(config, run)._replace(init=init) if config.steps == 8 else build(config, run)
    )
    for _ in range(2):
        result = check({"T1": claim()}, build=late)["T1"]
        assert result["diverged"] == {"long": [0] * 3} and result["verdict"] == "not reproduced"


def test_another_error_ends_a_check(check):
    def fails(step, state):
        raise UserError("no such data set")

    with pytest.raises(UserError, match="no such data set"):
        check({"T1": claim()}, build=lambda *of: build(*of)._replace(data=fails))


def test_a_figure_that_is_not_finite_does_not_hold(check, tmp_path):
    """A test whose loss overflows, of a run whose training did not."""
    lost = lambda state: {"error": np.inf}
    broken = lambda config, run: (
        build(config, run)._replace(test=lost) if config.steps == 8 else build(config, run)
    )
    check({"T1": claim()}, build=broken)
    result = strict((tmp_path / "results" / "tiny.json").read_text())["T1"]
    assert result["figures"]["long"]["error"] == [None] * 3 and "diverged" not in result
    assert result["inequalities"]["long < short"]["holds"] == [False] * 3
    assert result["verdict"] == "not reproduced" and result["p"] == 1


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


@pytest.mark.parametrize("script", WITH_CLAIMS, ids=lambda script: script.__name__)
def test_claims_that_say_what_divergence_is_say_it_of_all_their_figures(script):
    """Where one arm has diverged, or all, each inequality is still a number."""
    figures = lambda: collections.defaultdict(lambda: 1.0)
    for one in script.CLAIMS.values():
        if isinstance(one, Claim) and one.diverged:
            for diverged in [[], *([arm] for arm in one.arms), list(one.arms)]:
                by = {arm: one.diverged if arm in diverged else figures() for arm in one.arms}
                for inequality in one.inequalities.values():
                    assert isinstance(float(inequality(by)), float)


def test_unknown_claim(command):
    assert_one_line(command("claims", "--only", "R9"), "no claim 'R9'", "R1, R2, R3, R6", code=2)
