"""What a language model learns from its context alone, without a step of the gradient.

GPT-3, section 2: a question stands behind k demonstrations, of which each is a question with its
answer. Zero-shot is k = 0, one-shot k = 1, few-shot as many as the context has room for. Of the
options for an answer that one is chosen to whose tokens the model gives the highest mean
log-probability (section 2.4).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxhist import UserError, evaluate, losses
from jaxhist.algorithm import Batch, State
from jaxhist.data import batches, text
from jaxhist.packed import EOS


class Question(NamedTuple):
    """To be answered, and how others were."""

    demonstrations: Sequence[str]  # the first k are used; a line for each
    question: str
    options: Sequence[str]  # that complete it
    answer: int  # which one is right


def accuracy(
    predict: Callable, vocabulary: Tokenizer, length: int, mesh: Mesh
) -> Callable[[State, Sequence[Question], int], float]:
    """How many questions are answered rightly.

    Args:
      predict: (state, tokens [B, T]) -> logits [B, T, V].
      vocabulary: of the model.
      length: T at most.
      mesh: the devices that share the work.

    Returns:
      (state, questions, k) -> float. It raises UserError where the context has no room for k.
    """

    def log_probability(state: State, batch: Batch) -> jax.Array:
        tokens, target = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        values = -losses.categorical_cross_entropy(predict(state, tokens), target)
        place = jnp.arange(target.shape[1])[None]
        option = (batch["begin"][:, None] <= place) & (place < batch["end"][:, None])
        return jnp.where(option, values, 0).sum(1) / option.sum(1)

    outputs = evaluate.outputs(log_probability, mesh, 100)

    def accuracy(state: State, questions: Sequence[Question], k: int) -> float:
        found = outputs(state, batches.slices(rows(vocabulary, questions, k, length), 100))
        options = np.cumsum([len(question.options) for question in questions])
        chosen = [values.argmax() for values in np.split(found, options[:-1])]
        answers = [question.answer for question in questions]
        return float(np.mean(np.array(chosen) == np.array(answers)))

    return accuracy


def rows(vocabulary: Tokenizer, questions: Sequence[Question], k: int, length: int) -> Batch:
    """A row for every option of every question.

    Returns:
      {"tokens": [N, T + 1], "begin", "end": [N]}: where, among the T that are predicted, the tokens
      of the option stand. T is a multiple of 16, or `length`.

    Raises:
      UserError: one is longer than `length`.
    """
    encode = lambda text: vocabulary.encode(text).ids
    tokens, begin, end = [], [], []
    for question in questions:
        context = "\n".join([*question.demonstrations[:k], question.question])
        context = [EOS, *encode(context)]
        for option in map(encode, question.options):
            tokens.append(context + option)
            begin.append(len(context) - 1)
            end.append(len(context) + len(option) - 1)
    if max(end) > length:
        raise UserError(f"{k} demonstrations are {max(end)} tokens, more than {length}")
    width = min(-(-max(end) // 16) * 16, length)
    places = {"begin": np.array(begin, np.int32), "end": np.array(end, np.int32)}
    return {"tokens": text.padded(tokens, width + 1), **places}
