"""BERT, section 4: after the pre-training, labels of sentences and of pairs are learned. And what
both have in common.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epy
from jax import Array

from jaxhist import devices, evaluate, losses, starting
from jaxhist.adam import adam
from jaxhist.algorithm import descend
from jaxhist.data import sentences, wordpiece
from jaxhist.models.bert import TENSOR, Classifier, Size
from jaxhist.packed import PAD
from jaxhist.train import Experiment, Run

with epy.lazy_imports():  # they take a second
    from sklearn import metrics


def network(config: Any) -> dict[str, Any]:
    """What models are made with."""
    return {
        "vocabulary": config.vocabulary,
        "size": Size(config.layers, config.width, config.heads, config.dropout, config.deviation),
        "left_to_right": config.left_to_right,
        "dtype": jnp.dtype(config.dtype),
    }


def vocabulary(config: Any, run: Run, texts: Callable) -> Callable:
    """That of the run it begins with, if there is one."""
    words = (config.start or config.words).replace("{seed}", str(run.seed))
    return wordpiece.kept(run.workdir, words, texts, config.vocabulary, config.cased)


def optimizer(config: Any, begin: int | Array = 0) -> optax.GradientTransformation:
    """Appendix A.2: Adam, and a decay of 0.01. As in the authors' code, gradients have a norm of 1
    at most, the moments do not see the decay and are not corrected, biases and norms have none.

    Args:
      config: of the run.
      begin: steps that were taken before its own, with the same moments.
    """
    steps = config.decay or begin + config.steps
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        adam(-1.0, eps=1e-6, corrected=config.corrected),  # upwards; the last line turns it
        optax.add_decayed_weights(0.01, matrices),
        optax.scale_by_learning_rate(warmed(config.rate, config.warmup, steps)),
    )


def matrices(params: Any) -> Any:
    """Which parameters are neither biases nor of norms."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def warmed(rate: float, warmup: int, steps: int | Array) -> optax.Schedule:
    """Up to the rate in a straight line, then along one that comes to 0 after `steps`."""

    def at(step):
        falling = jnp.maximum(1 - step / steps, 0)
        return rate * jnp.where(step < warmup, step / max(warmup, 1), falling)

    return at


def experiment(config: Any, run: Run, build: Callable) -> Experiment:
    """Labels are learned, with all the parameters of the encoder and the pooler.

    Args:
      config: of this run.
      run: this run.
      build: makes an experiment from a configuration, for the run that it begins with.
    """
    # Data.
    mesh = devices.mesh(run.devices, run.mesh)
    pieces = vocabulary(config, run, lambda: data.texts())
    data = sentences.from_tfds(
        config.data,
        pieces,
        ("[CLS]", "[SEP]"),
        config.examples,
        config.batch,
        config.length,
        run.seed,
        mesh,
    )

    # Model.
    model = Classifier(len(data.names), **network(config))

    def init_model(key):
        tokens = jnp.zeros((1, config.length), jnp.int32)
        return model.init(key, tokens, tokens, train=False)["params"], ()

    def begin(state):
        parts = lambda state: {name: state.params[name] for name in ("encoder", "pooler")}
        found = starting.learned(build, config, run, parts, parts(state))
        return state.replace(params={**state.params, **found})

    # Loss.
    def loss(params, extra, batch, key):
        inputs = batch["tokens"], batch["segment"]
        logits = model.apply({"params": params}, *inputs, train=True, rngs={"dropout": key})
        values = losses.categorical_cross_entropy(logits, batch["label"])
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        tokens = jnp.sum(batch["tokens"] != PAD)
        return values, (extra, {"accuracy": accuracy, "count/tokens": tokens})

    # Algorithm.
    algorithm = descend(init_model, loss, optimizer(config))

    def predict(state, batch):
        inputs = batch["tokens"], batch["segment"]
        logits = model.apply({"params": state.params}, *inputs, train=False)
        values = losses.categorical_cross_entropy(logits, batch["label"])
        return values, logits.argmax(-1), batch["label"]

    outputs = evaluate.outputs(predict, mesh)

    def measure(state, split):
        values, found, label = outputs(state, data.held_out(split))
        right = np.mean(found == label)
        return {
            "loss": float(values.mean()),
            "accuracy": float(right),
            "standard error": float(np.sqrt(right * (1 - right) / len(label))),  # of the accuracy
            # Matthews's, GLUE's for CoLA.
            "correlation": float(metrics.matthews_corrcoef(label, found)),
        }

    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        begin=begin,
        step=algorithm.step,
        evaluate=lambda state: measure(state, "validation"),
        test=lambda state: measure(state, "test"),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        tensor=TENSOR,
    )
