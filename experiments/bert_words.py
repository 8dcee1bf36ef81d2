"""BERT, section 3: how the words that a network guesses are compared, tested and shown."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import bert_tuning
from jaxhist import UserError, devices, evaluate, losses, tell, warn
from jaxhist.algorithm import Batch, State
from jaxhist.data import text, wordpiece
from jaxhist.data.masked import Corpus
from jaxhist.models.bert import POSITIONS, PreTraining
from jaxhist.packed import PAD
from jaxhist.train import Run


def compare(model: nn.Module, params: Any, batch: Batch, **options) -> dict[str, jax.Array]:
    """Of the words [B, P], where they are `real`, and of what `follows` [B]: losses, and which are
    right. The options are those of `apply`."""
    inputs = batch["tokens"], batch["segment"], batch["position"]
    words, follows = model.apply({"params": params}, *inputs, **options)
    real = batch["label"] != PAD
    return {
        "words": losses.categorical_cross_entropy(words, batch["label"]),
        "right": real & (words.argmax(-1) == batch["label"]),
        "real": real,
        "follows": losses.categorical_cross_entropy(follows, batch["follows"]),
        "follows right": follows.argmax(-1) == batch["follows"],
    }


def tests(model: nn.Module, data: Corpus, config: Any, run: Run) -> Callable:
    """(state, split) -> what is measured: words as they are hidden in training, one word that is
    hidden alone in a row, and what follows."""

    def measure(state: State, batch: Batch):
        params = state.params
        found, alone = (compare(model, params, b, train=False) for b in (batch, batch["alone"]))
        return {
            "loss": jnp.where(found["real"], found["words"], 0).sum(1),
            "right": found["right"].sum(1),
            "words": found["real"].sum(1),
            "alone": alone["right"][:, 0],
            "follows": found["follows right"],
        }

    mean = evaluate.means(measure, devices.mesh(run.devices, run.mesh), config.batch)

    def test(state: State, split: str) -> dict[str, float]:
        means = mean(state, data.held_out(split))
        loss = means["loss"] / means["words"]
        scores = {
            "loss words": loss,
            "perplexity": float(np.exp(loss)),
            "accuracy words": means["right"] / means["words"],
            "accuracy alone": means["alone"],
        }
        return scores | ({"accuracy follows": means["follows"]} if config.pairs else {})

    return test


def fill(config: Any, run: Run, state: State, sentence: tyro.conf.Positional[str], top: int = 5):
    """Guess the words in the place of [MASK].

    Args:
      config: of the run.
      run: the run.
      state: that was tested.
      sentence: such as "the film was [MASK] ."
      top: how many guesses.
    """
    if config.learn != "words":
        raise UserError("this network has learned labels; a pre-trained one guesses words")
    tokenizer = bert_tuning.vocabulary(config, run, list)()  # it is there
    special = wordpiece.special(tokenizer)
    row = [special.begin]
    for part in text.ids(tokenizer, sentence.split("[MASK]")):
        row += [*part, special.mask]
    tokens = np.array([*row[:-1], special.end])[None]
    (places,) = np.nonzero(tokens[0] == special.mask)
    if not len(places):
        raise UserError("there is nothing to guess: write [MASK] in the place of a word")
    if not 1 <= top <= config.vocabulary or tokens.size > POSITIONS:
        raise UserError(f"there are no {top} guesses, or more than {POSITIONS} tokens")
    if tokens.size > config.length:
        warn(f"the sentence has {tokens.size} tokens; the network knows rows of {config.length}")
    model = PreTraining(**bert_tuning.network(config))
    apply = jax.jit(lambda *inputs: model.apply({"params": state.params}, *inputs, train=False))
    position = places[None] - config.left_to_right  # left to right, from the word before
    logits, _ = apply(tokens, np.zeros_like(tokens), position)
    for number, probability in enumerate(np.array(jax.nn.softmax(logits[0]))):
        if number:
            tell("")
        for token in np.argsort(-probability)[:top].tolist():
            tell(f"{probability[token]:.3f}  {tokenizer.id_to_token(token)}")
