import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import devices, evaluate
from jaxhist.data import batches


@pytest.mark.parametrize("count", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("mesh_size, size", [(1, 16), (8, 16), (8, 3)])
def test_means_are_numpys_and_padding_does_not_count(count, mesh_size, size):
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    measure = lambda state, batch: {
        "sum": batch["x"].sum(1) + state,
        "one": jnp.ones(len(batch["x"])),
    }
    means = evaluate.means(measure, devices.mesh(mesh_size), size)
    got = means(jnp.float32(2), batches.slices({"x": x}, size))
    np.testing.assert_allclose(got["sum"], np.mean(x.sum(1) + 2), rtol=1e-5)
    assert got["one"] == 1 and isinstance(got["one"], float)


def test_one_program_measures_all_batches_of_all_sets():
    traced = []

    def measure(state, batch):
        traced.append(None)
        return {"x": batch}

    means = evaluate.means(measure, devices.mesh(), 16)
    for count in (40, 7):
        means(None, batches.slices(np.ones(count, np.float32), 16))
    assert len(traced) == 1


def test_padding_may_measure_as_nan():
    """The logarithm of a zero that is only padding must not spoil the mean."""
    means = evaluate.means(lambda state, x: {"log": jnp.log(x)}, devices.mesh(), 16)
    assert means(None, [np.ones(5, np.float32)]) == {"log": 0.0}


def test_means_over_a_stream_are_means_over_arrays():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    means = evaluate.means(lambda state, x: {"x": x.sum(1)}, devices.mesh(), 16)
    streamed = means(None, batches.in_order(x, lambda row: row, 16, workers=3))
    assert streamed == means(None, batches.slices(x, 16))


def test_a_stream_is_not_read_far_ahead_of_the_devices(monkeypatch):
    """A data set larger than their memory must not pile up there."""
    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda parts: waited.append(len(wait(parts))))
    means = evaluate.means(lambda state, x: {"x": x}, devices.mesh(1), 16)
    means(None, batches.slices(np.ones(64, np.float32), 16))
    assert waited == [0, 1, 1, 1]


@pytest.mark.parametrize("classes", [10, 100])
def test_classification_is_by_the_mean_probability_over_the_views(classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 20, classes), scale=4).astype(np.float32)
    label = rng.integers(0, classes, 20)
    got = jax.device_get(jax.jit(evaluate.classification)(logits, label))
    assert ("top5" in got) == (classes >= 100)
    for i in range(20):
        views = [np.exp(view[i]) / np.exp(view[i]).sum() for view in logits]
        likely = np.mean(views, 0)
        ranked = list(np.argsort(-likely))
        np.testing.assert_allclose(got["loss"][i], -np.log(likely[label[i]]), rtol=1e-4)
        assert got["accuracy"][i] == (ranked[0] == label[i])
        if classes >= 100:
            assert got["top5"][i] == (label[i] in ranked[:5])
