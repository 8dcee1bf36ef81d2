"""How a language model is measured on text, and how it goes on with one."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tokenizers.decoders import DecodeStream

from jaxhist import UserError, decode, devices, evaluate, losses, packed, shots, warn
from jaxhist.algorithm import Batch, Key, State, seeded
from jaxhist.data import documents, text
from jaxhist.data.language import Corpus
from jaxhist.models.gpt import GPT
from jaxhist.shots import Question
from jaxhist.train import Run

SHOTS = 0, 1, 4, 8  # k
QUESTIONS = 200


class LanguageModel(NamedTuple):
    """A model, and the corpus whose tokens it speaks."""

    model: Any  # GPT, or LanguageLSTM
    corpus: Corpus


def measuring(both: LanguageModel, run: Run, size: int) -> Callable[[State, str], dict[str, float]]:
    """(state, "validation" or "test") -> how well the windows of its text, so many at a time, are
    predicted: the loss of a token in nats, its perplexity, the bits of a character, and how many
    tokens are guessed."""
    model, corpus = both

    def measure(state: State, batch: Batch):
        tokens, target = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits = model.apply({"params": state.params}, tokens, train=False)
        real, values = target != packed.PAD, losses.categorical_cross_entropy(logits, target)
        return {
            "loss": jnp.where(real, values, 0).sum(1),
            "right": jnp.sum(real & (logits.argmax(-1) == target), 1),
            "tokens": real.sum(1),
        }

    mean = evaluate.means(measure, devices.mesh(run.devices, run.mesh), size)

    def scores(state: State, split: str) -> dict[str, float]:
        means = mean(state, corpus.windows(split, size))
        loss = means["loss"] / means["tokens"]
        return {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "bits/character": float(loss / np.log(2) * corpus.tokens_per_character(split)),
            "accuracy": means["right"] / means["tokens"],
        }

    return scores


def answering(language_model: LanguageModel, run: Run) -> Callable[[State], dict[str, float]]:
    """state -> how many questions on letters are answered rightly behind k pairs."""
    model, corpus = language_model

    def predict(state: State, tokens: jax.Array) -> jax.Array:
        return model.apply({"params": state.params}, tokens, train=False)

    def answers(state: State) -> dict[str, float]:
        vocabulary, length = corpus.vocabulary(), corpus.batch["tokens"].shape[1] - 1
        accuracy = shots.accuracy(predict, vocabulary, length, devices.mesh(run.devices, run.mesh))
        questions = [asked(document) for document in documents.letters("test")[:QUESTIONS]]
        return {f"accuracy {k}-shot": accuracy(state, questions, k) for k in SHOTS}

    return answers


def asked(document: str) -> Question:
    """One of a document's pairs: what is its digit?"""
    *pairs, (letter, digit) = document.split("\n")[: max(SHOTS) + 1]
    return Question(pairs, letter, documents.DIGITS, documents.DIGITS.index(digit))


def completions(
    model: GPT, params: Any, prompt: Sequence[int], adjust: Callable, key: Key
) -> Iterator[int]:
    """The tokens that follow, each as soon as it is drawn from softmax(adjust(logits)), until the
    document ends.

    Keys and values of what has been read are kept. When there are as many as the model has
    positions, it reads the later half of the text again and goes on from there.
    """
    variables, length = {"params": params}, model.length
    extend = partial(model.apply, method=model.extend)

    @jax.jit
    def begin(variables, tokens, count):
        logits, cache = extend(variables, model.empty(1), tokens, 0)
        return jax.lax.dynamic_index_in_dim(logits, count - 1, 1, keepdims=False), cache

    @partial(jax.jit, donate_argnums=1)
    def read(variables, cache, token, index):
        logits, cache = extend(variables, cache, token[None, None], index)
        return logits[:, 0], cache

    @jax.jit
    def choose(logits, number):
        chances = adjust(logits.at[:, packed.PAD].set(-jnp.inf))
        return jax.random.categorical(jax.random.fold_in(key, number), chances)[0]

    written, room, cache = [*prompt], 0, None
    while True:
        if room:
            logits, cache = read(variables, cache, jnp.int32(written[-1]), length - room)
            room -= 1
        else:
            kept = written if len(written) < length else written[-max(length // 2, 1) :]
            logits, cache = begin(variables, text.padded([kept], length), len(kept))
            room = length - len(kept)
        token = int(choose(logits, len(written)))
        if token == packed.EOS:
            return
        written.append(token)
        yield token


def command(language_model_of: Callable[[Any, Run], LanguageModel]) -> Callable:
    """The command `complete` of an experiment."""

    def complete(
        config: Any,
        run: Run,
        state: State,
        prompt: tyro.conf.Positional[str] = "",
        tokens: int = 200,
        temperature: float = 1.0,
        top_k: int = 0,
        nucleus: float = 1.0,
        seed: int = 0,
    ):
        """Go on with a text, token by token, until the document ends.

        Args:
          config: of the run.
          run: the run.
          state: that was tested.
          prompt: the text; without one a document begins.
          tokens: at most.
          temperature: the nearer to 0, the more often the most probable token is taken.
          top_k: only so many tokens, the most probable ones; 0 for all.
          nucleus: only the most probable ones that together have this probability.
          seed: of what is drawn.
        """
        if config.learn != "text" or config.network != "transformer":
            raise UserError("only a Transformer that has learned a language goes on with a text")
        if temperature <= 0 or top_k < 0 or not 0 < nucleus <= 1 or tokens < 1:
            raise UserError(
                "a temperature is above 0, top-k is 0 or more, a nucleus above 0 and at most 1, "
                "and there is at least one token"
            )

        def adjust(logits):
            logits = decode.temperature(logits, temperature)
            logits = decode.top_k(logits, top_k or logits.shape[-1])
            return decode.nucleus(logits, nucleus)

        model, corpus = language_model_of(config, run)
        vocabulary = corpus.vocabulary()
        begun = vocabulary.encode(prompt).ids or [packed.EOS]
        if len(begun) >= config.length:
            warn(f"the text has {len(begun)} tokens; the last {config.length // 2} are read")
        pieces, key = DecodeStream(begun, skip_special_tokens=False), seeded(seed)
        print(prompt, end="", flush=True)
        for token in itertools.islice(completions(model, state.params, begun, adjust, key), tokens):
            print(pieces.step(vocabulary, token) or "", end="", flush=True)
        print()

    return complete
