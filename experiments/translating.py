"""What the experiments of translation share: their data, and how a trained network translates."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxhist import UserError, decode, devices, evaluate, losses, packed, tell, typed
from jaxhist.algorithm import Batch, State
from jaxhist.data import text, translation
from jaxhist.data.translation import Parallel
from jaxhist.train import Run

Panels = Callable[
    [Any, Batch], dict[str, jax.Array]
]  # (params, batch of one pair) -> title: [T, S]


class Translator(NamedTuple):
    """A model, and the corpus whose tokens it speaks."""

    model: nn.Module
    corpus: Parallel
    params: Callable[[State], Any]  # those to translate with
    panels: Panels | None = None  # what it looks at, for the picture
    alpha: float = 0.0  # of the length penalty of a beam search


def corpus(config: Any, run: Run, reverse: bool = False) -> Parallel:
    """The data of a configuration, whose fields have the same names in all experiments."""
    languages, mesh = (config.source, config.target), devices.mesh(run.devices, run.mesh)
    return translation.named(
        config.data,
        languages,
        config.vocabulary,
        config.batch,
        config.length,
        reverse,
        run.seed,
        run.workdir,
        mesh,
    )


def sizes(vocabulary: tuple[int, ...]) -> tuple[int, int]:
    """Of the vocabularies of source and target."""
    return vocabulary[0], vocabulary[-1]


def guessed(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Whether the target is the most probable token. [..., V], [...] -> [...]

    By the maximum: `argmax` over thousands of tokens takes XLA's CPU backend a tenth of a step.
    """
    return jnp.take_along_axis(logits, target[..., None], -1)[..., 0] == logits.max(-1)


def measure(translator: Translator) -> Callable[[State, Batch], dict[str, jax.Array]]:
    """(state, batch) -> of each row [B] the loss of its tokens, how many are guessed, how many."""

    def of_rows(state: State, batch: Batch):
        variables, target = {"params": translator.params(state)}, batch["target"]
        logits = translator.model.apply(variables, batch["source"], target, train=False)
        real = target != packed.PAD
        values = losses.categorical_cross_entropy(logits, target)
        return {
            "loss": jnp.where(real, values, 0).sum(1),
            "right": jnp.sum(real & guessed(logits, target), 1),
            "tokens": real.sum(1),
        }

    return of_rows


def counted(batch: Batch, logits: jax.Array) -> dict[str, jax.Array]:
    """Metrics of a training batch: `padding` is its share of all tokens."""
    target, real = batch["target"], batch["target"] != packed.PAD
    values = losses.categorical_cross_entropy(logits, target)
    right = losses.per_real(1.0 * guessed(logits, target), real).mean()
    every = jnp.stack([batch["source"], target])
    return {
        "perplexity": jnp.exp(losses.per_real(values, real).mean()),
        "accuracy": right,
        "padding": jnp.mean(every == packed.PAD),
        "count/tokens": jnp.sum(every != packed.PAD),
    }


class Translations(NamedTuple):
    """Of N sentences."""

    texts: list[str]
    log_probability: np.ndarray  # [N], as `decode.Decoded` has it


def translate_with(
    translator: Translator, run: Run, beams: int, size: int = 100
) -> Callable[[State, Sequence[str]], Translations]:
    """(state, sentences) -> Translations, `size` at a time, each of the tokens of its source and
    50 more at most (Vaswani et al., section 6.1)."""
    model, corpus = translator.model, translator.corpus
    mesh = devices.mesh(run.devices, run.mesh)
    size = -(-size // mesh.size) * mesh.size

    def decoded(state, batch):
        source, variables = batch["source"], {"params": translator.params(state)}
        count, length = len(source), source.shape[1] + 50

        def next_token(*inputs):
            return model.apply(variables, *inputs, method=model.next)

        memory, cache = model.apply(variables, source, length, method=model.begin)
        if beams == 1:
            return decode.greedy(next_token, memory, cache, count, length)
        alpha = translator.alpha
        return decode.beam_search(next_token, memory, cache, count, length, beams, alpha)

    run_batches = evaluate.outputs(decoded, mesh, size)

    def translate(state: State, sentences: Sequence[str]) -> Translations:
        # Sentences of a length together, since a batch takes as long as its longest; the last
        # batch is filled with its last sentence. The width is one of few, each a program.
        tokens = corpus.encode(sentences)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        width = -(-len(tokens[order[-1]]) // 16) * 16
        filled = [*order, *[order[-1]] * (-len(order) % size)]
        rows = text.padded([tokens[i] for i in filled], width)
        batches = ({"source": rows[i : i + size]} for i in range(0, len(rows), size))
        written = run_batches(state, batches)
        back = np.argsort(order)
        texts = text.decode(corpus.vocabularies()[1], written.tokens[back])
        return Translations(texts, written.log_probability[back])

    return translate


def command(translator_of: Callable[[Any, Run], Translator]) -> Callable:
    """The command `translate` of an experiment."""

    def translate(
        config: Any,
        run: Run,
        state: State,
        sentences: tyro.conf.Positional[tuple[str, ...]] = (),
        beams: int = 4,
    ):
        """Translate sentences, or the lines of standard input.

        Args:
          config: of the run.
          run: the run.
          state: that was tested.
          sentences: if there are none, the lines of standard input are translated. An empty one
            gives an empty line.
          beams: of the search; 1 takes the most probable token each time.
        """
        if beams < 1:
            raise UserError(f"{beams} beams are too few")
        lines = list(sentences) or typed()
        if not (written := [line for line in lines if line]):
            raise UserError("there is nothing to translate: all lines are empty, or there is none")
        translator = translator_of(config, run)
        search = translate_with(translator, run, beams, min(len(written), 100))
        translations = iter(search(state, written).texts)
        for line in lines:  # what is empty stays so: input and output keep in step
            tell(next(translations) if line else "")

    return translate
