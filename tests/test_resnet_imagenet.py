"""ResNet-50 at 224 pixels on real photographs."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import needs

from experiments import resnet
from jaxhist.algorithm import keys
from jaxhist.data import photographs
from jaxhist.models.resnet import ResNet
from jaxhist.train import Run

SAMPLE = replace(resnet.PRESETS["imagenet50"], data="imagenet_sample", batch=8, rate=0.01)


@needs("imagenet_sample")
def test_training_batches_are_centred_crops_and_tests_see_ten_views():
    data = resnet.large_photographs(SAMPLE, Run())
    batch = data.train(0, None)
    assert batch["image"].shape == (8, 224, 224, 3) and batch["image"].dtype == np.float32
    assert -1.5 < batch["image"].min() < -0.2 and 0.2 < batch["image"].max() < 1.5
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    five = np.arange(2 * 5 * 224 * 224 * 3, dtype=np.uint8).reshape(2, 5, 224, 224, 3)
    views = data.views(five)
    assert views.shape == (10, 2, 224, 224, 3)
    # Uncentred, the last five are the mirror images of the first.
    uncentred = views - data.views(np.zeros_like(five))
    np.testing.assert_allclose(uncentred[:5, ..., ::-1, :], uncentred[5:], atol=1e-6)


@pytest.fixture
def validated(monkeypatch):
    """The first five photographs of the sample stand for the split validation, which it lacks."""
    source = photographs.from_tfds("imagenet_sample")
    load = lambda split: [source.load("train")[i] for i in range(5)]
    monkeypatch.setattr(photographs, "from_tfds", lambda name: source._replace(load=load))


@needs("imagenet_sample")
def test_every_photograph_is_tested_once_in_ten_crops(validated):
    (batch,) = resnet.large_photographs(SAMPLE, Run()).test()
    assert batch["image"].shape == (5, 5, 224, 224, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (5,)


@pytest.mark.long
@needs("imagenet_sample")
def test_a_test_measures_the_mean_of_the_probabilities(validated):
    experiment = resnet.build(replace(SAMPLE, depth=18), Run(devices=1))
    state = jax.jit(experiment.init)(keys(0).init)
    measured = experiment.test(state)
    assert measured.keys() == {"loss", "accuracy", "top5"}
    model = ResNet(18, 1000)
    (batch,) = resnet.large_photographs(SAMPLE, Run()).test()
    views = resnet.large_photographs(SAMPLE, Run()).views(batch["image"])
    variables = {"params": state.params, "batch_stats": state.extra}
    likely = np.mean([jax.nn.softmax(model.apply(variables, v, train=False)) for v in views], 0)
    rank = (-likely).argsort(-1).argsort(-1)[np.arange(5), batch["label"]]
    assert np.isclose(measured["loss"], -np.log(likely[np.arange(5), batch["label"]]).mean(), 1e-3)
    assert measured["accuracy"] == np.mean(rank < 1) and measured["top5"] == np.mean(rank < 5)


@pytest.mark.long
@needs("imagenet_sample")
def test_the_loss_falls_over_20_steps_on_one_batch():
    """About two minutes on two cores."""
    experiment = resnet.build(SAMPLE, Run())
    key = keys(0)
    state = jax.jit(experiment.init)(key.init)
    batch = experiment.data(0, state)
    step = jax.jit(experiment.step, donate_argnums=0)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch, key.step)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert 5 < losses[0] < 12  # log(1000) = 6.9, and the scatter of the first logits
    assert np.mean(losses[-3:]) < losses[0] / 2, losses
