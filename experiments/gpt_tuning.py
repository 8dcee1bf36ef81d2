"""Improving Language Understanding by Generative Pre-Training, sections 3.2 and 3.3: after a
language, the labels of sentences and of pairs are learned. And the networks that learn either.

Alec Radford, Karthik Narasimhan, Tim Salimans, Ilya Sutskever, 2018.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

from experiments import gpt_claims
from jaxhist import devices, evaluate, losses, plots, starting
from jaxhist.algorithm import descend
from jaxhist.claims import Figures, Trained
from jaxhist.data import language, sentences
from jaxhist.models.gpt import GPT, TENSOR, Classifier, Size
from jaxhist.models.gpt_lstm import LanguageLSTM
from jaxhist.packed import PAD
from jaxhist.train import Experiment, Run

TEXT = 0.5  # lambda, the weight of the text's own loss (section 4.1)

# Not in the paper: one token, the end of a document, also is the start of a text, what stands
# between two, and what the label is read from; there it is three new ones.
MARKS = "[EOS]", "[EOS]"


def network(config: Any) -> nn.Module:
    """What learns a language."""
    if config.network == "lstm":
        return LanguageLSTM(config.vocabulary, config.layers, config.width, config.dropout)
    return GPT(
        config.vocabulary,
        Size(config.layers, config.width, config.heads),
        config.length,
        config.norm,
        config.band,
        config.dropout,
        config.remat,
        config.unroll,
        jnp.dtype(config.dtype),
    )


def experiment(config: Any, run: Run, build: Callable) -> Experiment:
    """Labels are learned, with all the parameters of the network.

    Args:
      config: of this run.
      run: this run.
      build: makes an experiment from a configuration, for the run that it begins with.
    """
    # Data.
    other, mesh = (
        (config.start or config.words).replace("{seed}", str(run.seed)),
        devices.mesh(run.devices, run.mesh),
    )
    vocabulary = language.kept(
        run.workdir, other, lambda: data.texts(), config.unit, config.vocabulary
    )
    data = sentences.from_tfds(
        config.data,
        vocabulary,
        MARKS,
        config.examples,
        config.batch,
        config.length,
        run.seed,
        mesh,
    )

    # Model.
    model = Classifier(network(config), len(data.names), config.dropout)

    def init_model(key):
        return model.init(key, jnp.zeros((1, 1), jnp.int32), train=False)["params"], ()

    def begin(state):
        drawn, part = state.params["network"], lambda state: state.params
        found = starting.learned(build, config, run, part, drawn)
        return state.replace(params={**state.params, "network": found})

    # Loss. Equation 5: that of the labels, and lambda times that of the text.
    def loss(params, extra, batch, key):
        tokens, label = batch["tokens"], batch["label"]
        logits, following = model.apply(
            {"params": params}, tokens, train=True, rngs={"dropout": key}
        )
        target = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
        of_text = losses.categorical_cross_entropy(following, target)
        of_text = losses.per_real(of_text, target != PAD)  # [B, T]
        of_label = losses.categorical_cross_entropy(logits, label)  # [B]
        metrics = {
            "loss label": of_label.mean(),
            "loss text": of_text.mean(),
            "accuracy": jnp.mean(logits.argmax(-1) == label),
            "count/tokens": jnp.sum(tokens != PAD),
        }
        return of_label[:, None] + TEXT * of_text, (extra, metrics)

    # Algorithm. Section 4.1: Adam, with a decay of 0.01 for all but biases and gains. As in the
    # authors' code, gradients have a norm of 1 at most.
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            warmed(config.rate, config.warmup, config.decay or config.steps),
            weight_decay=0.01,
            mask=decayed,
        ),
    )
    algorithm = descend(init_model, loss, optimizer)

    def measure(state, batch):
        logits, _ = model.apply({"params": state.params}, batch["tokens"], train=False)
        return evaluate.classification(logits[None], batch["label"])

    mean = evaluate.means(measure, mesh)
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        begin=begin,
        step=algorithm.step,
        evaluate=lambda state: mean(state, data.held_out("validation")),
        test=lambda state: mean(state, data.held_out("test")),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        tensor=TENSOR,
    )


def warmed(rate: float, warmup: int, decay: int) -> optax.Schedule:
    """Up to the rate in a straight line, then along one that comes to 0 after `decay` steps."""
    rising = lambda step: (step + 1) / max(warmup, 1)
    return lambda step: rate * jnp.clip(1 - step / decay, 0, rising(step))


def decayed(params: Any) -> Any:
    """Which parameters are neither biases nor the gains of norms. (Those of the layers lie in one
    array, so that a bias may have two axes.)"""
    names = "bias", "scale"
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in names, params)


# Claims


def figures(trained: Trained) -> Figures:
    """Of the test: the perplexity of text, or the share of right labels in %."""
    test = trained.lines[-1]
    if trained.config.learn == "labels":
        return {"accuracy": 100 * test["accuracy"]}
    return {"perplexity": test["perplexity"]}


def draw(trained: dict[str, list[Trained]], figure: Figure):
    """Loss of the text over the steps, and the labels at the end."""
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2)
    gpt_claims.draw_losses({"Transformer": trained["transformer"], "LSTM": trained["lstm"]}, left)
    names = {
        "scratch": "Transformer,\nfrom scratch",
        "tuned": "Transformer,\npre-trained",
        "lstm tuned": "LSTM,\npre-trained",
    }
    accuracy = lambda arm: [figures(run)["accuracy"] for run in trained[arm]]
    plots.points(right, {text: accuracy(arm) for arm, text in names.items()})
    right.set(ylabel="accuracy, %", title="SST-2, 1,000 labels")
