"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding.

Jacob Devlin, Ming-Wei Chang, Kenton Lee, Kristina Toutanova, 2018. arXiv:1810.04805.

    B rows      T tokens in a row      P of them to be predicted      V vocabulary
    D width     H heads                K = D / H width of a head
"""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import UserError, packed
from jaxhist.devices import BATCH, named
from jaxhist.packed import PAD

Array = jax.Array

POSITIONS = 512  # the most tokens in a row
SEGMENTS = 2

# As in the authors' code, google-research/bert, also where the paper does not say it.
gelu = partial(jax.nn.gelu, approximate=False)  # x Phi(x), Hendrycks & Gimpel, arXiv:1606.08415
Norm = partial(nn.LayerNorm, epsilon=1e-12)

# Each of the devices along the axis "tensor" has some of the heads, and some of the hidden units.
TENSOR = {
    "attention/W_[qkv]/kernel": (None, "tensor"),
    "attention/W_[qkv]/bias": ("tensor",),
    "attention/W_o/kernel": ("tensor", None),
    "W_1/kernel": (None, "tensor"),
    "W_1/bias": ("tensor",),
    "W_2/kernel": ("tensor", None),
}


class Size(NamedTuple):
    """Section 3. A feed-forward layer has 4 D units, everywhere the same share is dropped."""

    layers: int
    width: int
    heads: int
    dropout: float = 0.1
    deviation: float = 0.02  # of the first weights


BASE = Size(12, 768, 12)
LARGE = Size(24, 1024, 16)


def normal(size: Size) -> nn.initializers.Initializer:
    """Cut at two standard deviations, as in the authors' code."""
    return nn.initializers.truncated_normal(size.deviation)


class Attention(nn.Module):
    """Multi-head attention of a row to itself, with biases, some of whose weights are dropped."""

    size: Size
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """[B, T, D] -> [B, T, D]; the mask, what may be looked at, is [B, 1, T] or [B, T, T]."""
        _, width, heads, dropout, _ = self.size
        project = partial(nn.Dense, width, kernel_init=normal(self.size), dtype=self.dtype)
        split = lambda x: named(x.reshape(*x.shape[:2], heads, -1), BATCH, None, "tensor", None)
        q, k, v = (split(project(name=f"W_{name}")(x)) for name in "qkv")
        logits = _wide(jnp.einsum("bthk,bshk->bhts", q, k)) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e9))
        weights = nn.Dropout(dropout)(weights, deterministic=not train)
        out = jnp.einsum("bhts,bshk->bthk", weights.astype(v.dtype), v)
        return project(name="W_o")(out.reshape(x.shape))


class Layer(nn.Module):
    """Each sublayer: LayerNorm(x + Dropout(Sublayer(x))), as in the Transformer."""

    size: Size
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        _, width, _, dropout, _ = self.size
        dense = partial(nn.Dense, kernel_init=normal(self.size), dtype=self.dtype)
        drop = lambda x: nn.Dropout(dropout)(x, deterministic=not train)
        attended = Attention(self.size, self.dtype, name="attention")(x, mask, train)
        x = Norm(name="attention_norm")(x + drop(attended))
        hidden = named(gelu(dense(4 * width, name="W_1")(x)), BATCH, None, "tensor")
        return Norm(name="norm")(x + drop(dense(width, name="W_2")(hidden)))


class Encoder(nn.Module):
    """Two segments in a row, [CLS] A [SEP] B [SEP], or one, and behind them [PAD]."""

    vocabulary: int
    size: Size = BASE
    left_to_right: bool = False  # section 5.1: each token sees those before it, no others
    dtype: Any = None  # of the products; None is that of the parameters

    def setup(self):
        layers, width, heads, dropout, _ = self.size
        if width % heads:
            raise UserError(f"a width of {width} cannot be divided among {heads} heads")
        init = normal(self.size)
        embed = partial(nn.Embed, features=width, embedding_init=init, dtype=self.dtype)
        self.words = embed(self.vocabulary)
        self.positions, self.segments = embed(POSITIONS), embed(SEGMENTS)
        self.norm, self.drop = Norm(), nn.Dropout(dropout)
        self.layers = [Layer(self.size, self.dtype) for _ in range(layers)]

    def __call__(self, tokens: Array, segment: Array, train: bool) -> Array:
        """[B, T], [B, T] -> [B, T, D]."""
        if tokens.shape[1] > POSITIONS:
            raise UserError(f"a row has {POSITIONS} tokens at most, not {tokens.shape[1]}")
        place = jnp.arange(tokens.shape[1])
        x = self.words(tokens) + self.positions(place)[None] + self.segments(segment)
        x = self.drop(named(self.norm(x), BATCH, None, None), deterministic=not train)
        mask = (tokens != PAD)[:, None]
        if self.left_to_right:
            mask &= (place[:, None] >= place[None])[None]
        for layer in self.layers:
            x = named(layer(x, mask, train), BATCH, None, None)
        return x

    def whole(self, x: Array, tokens: Array) -> Array:
        """What stands for a row, [B, D]: [CLS], the first token.

        Not in the paper: left to right, where that sees nothing, the last one.
        """
        index = jnp.sum(tokens != PAD, 1, keepdims=True) - 1
        return packed.at(x, index if self.left_to_right else jnp.zeros_like(index))[:, 0]

    def predict(self, x: Array) -> Array:
        """Products with the embeddings of all words. [..., D] -> [..., V]"""
        return self.words.attend(x)


class Pooler(nn.Module):
    """tanh(W x + b), of what stands for a row. [B, D] -> [B, D]"""

    size: Size
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        W = nn.Dense(x.shape[-1], kernel_init=normal(self.size), dtype=self.dtype, name="W")
        return jnp.tanh(W(x))


class WordHead(nn.Module):
    """The last layer but one of predicting words. [B, P, D] -> [B, P, D]"""

    size: Size
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        W = nn.Dense(x.shape[-1], kernel_init=normal(self.size), dtype=self.dtype, name="W")
        return Norm(name="norm")(gelu(W(x)))


class PreTraining(nn.Module):
    """The encoder and its two tasks, section 3.1.

    Words are predicted by their embeddings, and a bias of their own.
    """

    vocabulary: int
    size: Size = BASE
    left_to_right: bool = False
    dtype: Any = None

    def setup(self):
        self.encoder = Encoder(self.vocabulary, self.size, self.left_to_right, self.dtype)
        self.pooler = Pooler(self.size, self.dtype)
        self.words = WordHead(self.size, self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        self.follows = nn.Dense(2, kernel_init=normal(self.size))

    def __call__(
        self, tokens: Array, segment: Array, position: Array, *, train: bool
    ) -> tuple[Array, Array]:
        """Tokens and segments [B, T], positions [B, P] -> logits of the words there [B, P, V], and
        of whether B follows A [B, 2], both at least float32."""
        x = self.encoder(tokens, segment, train)
        words = self.encoder.predict(self.words(packed.at(x, position)))
        follows = self.follows(self.pooler(self.encoder.whole(x, tokens)))
        return _wide(words) + self.bias[None, None], _wide(follows)


class Classifier(nn.Module):
    """The encoder, fine-tuned to tell classes, section 4.1. Logits [B, classes]."""

    classes: int
    vocabulary: int
    size: Size = BASE
    left_to_right: bool = False
    dtype: Any = None

    def setup(self):
        self.encoder = Encoder(self.vocabulary, self.size, self.left_to_right, self.dtype)
        self.pooler = Pooler(self.size, self.dtype)
        self.drop = nn.Dropout(self.size.dropout)
        self.output = nn.Dense(self.classes, kernel_init=normal(self.size))

    def __call__(self, tokens: Array, segment: Array, *, train: bool) -> Array:
        x = self.encoder(tokens, segment, train)
        x = self.pooler(self.encoder.whole(x, tokens))
        return _wide(self.output(self.drop(x, deterministic=not train)))


def _wide(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
