"""What is read out of runs of translation."""

import json

import numpy as np
import pytest

from experiments import multi30k, translating_claims
from jaxhist import UserError
from jaxhist.claims import Trained


def lines(perplexities, seconds_per_step, flops_per_step=2e12, every=10):
    """Of a log: a line of training before each evaluation."""
    found = []
    for number, perplexity in enumerate(perplexities, 1):
        speed = {"seconds/step": seconds_per_step, "FLOP/s": flops_per_step / seconds_per_step}
        step = number * every
        found.append({"step": step, "phase": "train", "speed": speed})
        found.append({"step": step, "phase": "evaluate", "perplexity": perplexity})
    return found


def test_two_runs_are_compared_where_they_have_cost_the_same():
    """The slow one has spent 40 s after its 20 steps; the fast one then is between two of its."""
    slow = translating_claims.costs(Trained(None, None, lines([50, 20], 2.0), None))
    fast = translating_claims.costs(Trained(None, None, lines([64, 32, 16, 8, 4, 2], 1.0), None))
    assert slow["steps/s"] == 0.5 and slow["s 10"] == 20 and slow["TFLOP 20"] == 40
    np.testing.assert_allclose(translating_claims.at_equal("s", slow, fast), (20, 8))
    np.testing.assert_allclose(translating_claims.at_equal("TFLOP", slow, fast), (20, 32))
    np.testing.assert_allclose(translating_claims.at_equal("s", fast, slow), (8, 20))
    odd = translating_claims.costs(Trained(None, None, lines([64, 4], 1.5, every=20), None))
    np.testing.assert_allclose(
        translating_claims.at_equal("s", odd, slow)[0], 64 * (4 / 64) ** (10 / 30)
    )


TEST = {"step": 30, "phase": "test", "BLEU": 20.0, "perplexity": 9.0}
BY_LENGTH = {"lengths 10 to 12": 15.0, "lengths 13": 1.0, "lengths 4 to 9": 30.0}


def test_lengths_are_in_their_order():
    found = translating_claims.by_quarter(TEST | BY_LENGTH)
    assert list(found.items()) == [("4 to 9", 30.0), ("10 to 12", 15.0), ("13", 1.0)]
    ends = translating_claims.shortest_and_longest(Trained(None, None, [TEST | BY_LENGTH], None))
    assert ends == {"shortest": 30.0, "longest": 1.0}


def test_networks_are_set_side_by_side(tmp_path, capsys):
    def run(name, end):
        folder = tmp_path / name
        folder.mkdir()
        header = {"experiment": name, "config": {}, "starts": []}
        every = [header, *lines([50, 20, 10], 2.0), *end]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in every))
        return str(folder)

    runs = run("attention", [TEST | BY_LENGTH]), run("transformer", [TEST | BY_LENGTH])
    multi30k.main(runs, str(tmp_path / "results"))
    written = json.loads((tmp_path / "results" / "multi30k.json").read_text())
    assert "tok:13a" in written["signature"] and "tok:13a" in capsys.readouterr().out
    assert written["runs"]["transformer"]["s"] == 60 and written["runs"]["attention"]["BLEU"] == 20
    assert (tmp_path / "results" / "multi30k.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="has not come to its end"):
        multi30k.main((run("seq2seq", []),), str(tmp_path / "results"))
