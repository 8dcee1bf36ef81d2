import numpy as np
from sklearn.linear_model import LinearRegression

from experiments.regression import CLAIMS, PRESETS, build, patients
from jaxhist import log
from jaxhist.claims import _equation
from jaxhist.train import Run, train


def test_the_tables_are_disjoint_and_standardised():
    tables = patients()
    assert [table["x"].shape for table in tables] == [(290, 10), (64, 10), (88, 10)]
    assert len(np.unique(np.concatenate([table["x"] for table in tables]), axis=0)) == 442
    for part in tables[0].values():
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(part.std(0), 1, rtol=1e-5)


def test_it_explains_what_least_squares_explain(tmp_path):
    run = Run(workdir=str(tmp_path), log_every=100, devices=1)
    result = train(build(PRESETS["small"], run), run, {"experiment": "regression", "config": {}})
    training, _, test = patients()
    exact = LinearRegression().fit(training["x"], training["y"]).score(test["x"], test["y"])
    assert abs(result["explained"] - exact) < 0.02
    losses = [line["loss"] for line in log.read(tmp_path)[1:] if line["phase"] == "evaluate"]
    assert losses[-1] < losses[0]


def test_the_squared_error_is_a_likelihood():
    assert _equation(CLAIMS["L1"])["verdict"] == "exact"
