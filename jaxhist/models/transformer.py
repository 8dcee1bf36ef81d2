"""Attention Is All You Need.

Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones, Aidan N. Gomez, Lukasz
Kaiser, Illia Polosukhin, 2017. arXiv:1706.03762. Its methods are those of all models of translation
(`seq2seq`).

    B rows      S, T tokens in a row of sources and of targets      V vocabulary
    D width     H heads     K = D / H width of a head
"""

import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxhist import UserError, packed
from jaxhist.devices import BATCH, named

Array = jax.Array
KeysValues = tuple[Array, Array]  # [B, S, H, K] each

# Section 3.5 and row E of table 3; without any, the order of the words is not known.
Positions = Literal["sinusoids", "learned", "none"]

# Not in the paper: how weights begin. As in its authors' code, tensor2tensor.
glorot = nn.initializers.glorot_uniform()

# Each of the devices along the axis "tensor" has some of the heads, and some of the hidden units.
TENSOR = {
    "W_[qkv]/kernel": (None, "tensor"),
    "W_o/kernel": ("tensor", None),
    "W_1/kernel": (None, "tensor"),
    "W_1/bias": ("tensor",),
    "W_2/kernel": ("tensor", None),
}


def sinusoids(position: Array, width: int) -> Array:
    """PE(pos, 2i) = sin(pos / 10000^(2i / D)), PE(pos, 2i + 1) = cos(...). [...] -> [..., D]"""
    wavelengths = 10_000 ** (np.arange(0, width, 2) / width)
    angle = position[..., None] / jnp.asarray(wavelengths, jnp.float32)[(None,) * position.ndim]
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)  # [..., D / 2, 2]
    return waves.reshape(*position.shape, -1)[..., :width]


def attend(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array]:
    """softmax(Q K^T / sqrt(K)) V of each head, equation 1.

    Args:
      q: [B, T, H, K].
      k, v: [B, S, H, K].
      mask: what may be looked at, [B, T, S] bool, or with 1 in the place of B or T.

    Returns:
      [B, T, H, K], and the weights [B, H, T, S].
    """
    logits = _wide(jnp.einsum("bthk,bshk->bhts", q, k)) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e9))  # finite: a row may see none
    return jnp.einsum("bhts,bshk->bthk", weights.astype(v.dtype), v), weights


class Attention(nn.Module):
    """Multi-head attention, section 3.2.2, without biases.

    The weights are sown as the intermediate "weights".
    """

    width: int
    heads: int
    dtype: Any

    def setup(self):
        project = lambda: nn.Dense(self.width, use_bias=False, kernel_init=glorot, dtype=self.dtype)
        self.W_q, self.W_k, self.W_v, self.W_o = (project() for _ in range(4))

    def keys_values(self, x: Array) -> KeysValues:
        """[B, S, D] -> two of [B, S, H, K]."""
        return self._split(self.W_k(x)), self._split(self.W_v(x))

    def __call__(self, x: Array, keys_values: KeysValues, mask: Array) -> Array:
        """[B, T, D] -> [B, T, D]; the mask is that of `attend`."""
        out, weights = attend(self._split(self.W_q(x)), *keys_values, mask)
        self.sow("intermediates", "weights", weights)
        return self.W_o(out.reshape(*out.shape[:2], -1))

    def _split(self, x: Array) -> Array:
        return named(x.reshape(*x.shape[:2], self.heads, -1), BATCH, None, "tensor", None)


class FeedForward(nn.Module):
    """max(0, x W_1 + b_1) W_2 + b_2, equation 2."""

    width: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Dense(self.hidden, kernel_init=glorot, dtype=self.dtype, name="W_1")(x))
        x = named(x, BATCH, None, "tensor")
        return nn.Dense(self.width, kernel_init=glorot, dtype=self.dtype, name="W_2")(x)


class Size(NamedTuple):
    """Section 3 and table 3."""

    layers: int  # of the encoder, and of the decoder
    width: int
    hidden: int
    heads: int
    dropout: float


BASE = Size(6, 512, 2048, 8, 0.1)
BIG = Size(6, 1024, 4096, 16, 0.3)


class EncoderLayer(nn.Module):
    """Each sublayer: LayerNorm(x + Dropout(Sublayer(x))), section 5.4."""

    size: Size
    dtype: Any

    def setup(self):
        _, width, hidden, heads, dropout = self.size
        self.attention = Attention(width, heads, self.dtype)
        self.feed_forward = FeedForward(width, hidden, self.dtype)
        self.norms = [nn.LayerNorm() for _ in range(2)]
        self.drop = nn.Dropout(dropout)

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        drop = lambda x: self.drop(x, deterministic=not train)
        attended = self.attention(x, self.attention.keys_values(x), mask)
        x = self.norms[0](x + drop(attended))
        return self.norms[1](x + drop(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Likewise, with a third sublayer between the two, which looks at the source."""

    size: Size
    dtype: Any

    def setup(self):
        _, width, hidden, heads, dropout = self.size
        self.attention = Attention(width, heads, self.dtype)
        self.source_attention = Attention(width, heads, self.dtype)
        self.feed_forward = FeedForward(width, hidden, self.dtype)
        self.norms = [nn.LayerNorm() for _ in range(3)]
        self.drop = nn.Dropout(dropout)

    def __call__(
        self,
        x: Array,
        keys_values: KeysValues,
        mask: Array,
        source: KeysValues,
        source_mask: Array,
        train: bool,
    ) -> Array:
        """[B, T, D] -> [B, T, D]. What it looks at: `keys_values` of x and of what is before it,
        and those of the encoder's output."""
        drop = lambda x: self.drop(x, deterministic=not train)
        x = self.norms[0](x + drop(self.attention(x, keys_values, mask)))
        x = self.norms[1](x + drop(self.source_attention(x, source, source_mask)))
        return self.norms[2](x + drop(self.feed_forward(x)))


class Transformer(nn.Module):
    """Attention in the place of recurrence. Logits [B, T, V], at least float32.

    Source and target have one vocabulary, whose embedding is also the last layer (section 3.4).
    """

    vocabulary: int
    size: Size = BASE
    positions: Positions = "sinusoids"
    length: int = 0  # how many positions there are, if they are learned; the last goes on
    dtype: Any = None  # of the products; None is that of the parameters

    def setup(self):
        layers, width, _, heads, dropout = self.size
        if width % heads or width % 2:
            raise UserError(f"a width of {width} cannot be divided among {heads} heads, or is odd")
        normal = nn.initializers.normal(width**-0.5)
        self.embedding = nn.Embed(self.vocabulary, width, embedding_init=normal, dtype=self.dtype)
        if self.positions == "learned":
            self.position_embedding = nn.Embed(self.length, width, embedding_init=normal)
        self.encoder = [EncoderLayer(self.size, self.dtype) for _ in range(layers)]
        self.decoder = [DecoderLayer(self.size, self.dtype) for _ in range(layers)]
        self.drop = nn.Dropout(dropout)

    def embed(self, tokens: Array, position: Array, train: bool) -> Array:
        """[B, T] tokens at [B, T] positions -> [B, T, D]."""
        x = self.embedding(tokens) * math.sqrt(self.size.width)
        if self.positions == "sinusoids":
            x += sinusoids(position, self.size.width).astype(x.dtype)
        elif self.positions == "learned":
            position = jnp.minimum(position, self.length - 1)
            x += self.position_embedding(position) * math.sqrt(self.size.width)
        return self.drop(named(x, BATCH, None, None), deterministic=not train)

    def encode(self, source: Array, train: bool) -> Array:
        sentence, position = packed.places(source)
        x = self.embed(source, position, train)
        mask = sentence[:, :, None] == sentence[:, None, :]
        for layer in self.encoder:
            x = named(layer(x, mask, train), BATCH, None, None)
        return x

    def predict(self, x: Array) -> Array:
        return named(_wide(self.embedding.attend(x)), BATCH, *(None,) * (x.ndim - 1))

    def __call__(self, source: Array, target: Array, *, train: bool) -> Array:
        encoded = self.encode(source, train)
        sentence, position = packed.places(target)
        T = jnp.arange(target.shape[1])
        before = (T[:, None] >= T[None, :])[None]
        mask = (sentence[:, :, None] == sentence[:, None, :]) & before
        source_mask = sentence[:, :, None] == packed.places(source).sentence[:, None, :]
        x = self.embed(packed.shifted(target), position, train)
        for layer in self.decoder:
            keys_values = layer.attention.keys_values(x)
            from_source = layer.source_attention.keys_values(encoded)
            x = layer(x, keys_values, mask, from_source, source_mask, train)
            x = named(x, BATCH, None, None)
        return self.predict(x)

    def begin(self, source: Array, length: int) -> tuple[Any, Any]:
        """Memory: keys and values of the source for each layer, and the mask. Cache: those of the
        target, as far as it is written."""
        encoded = self.encode(source, False)
        mask = packed.places(source).sentence[:, None, :] == 1  # [B, 1, S]
        memory = [layer.source_attention.keys_values(encoded) for layer in self.decoder]
        shape = len(source), length, self.size.heads, self.size.width // self.size.heads
        cache = [(jnp.zeros(shape, keys.dtype),) * 2 for keys, _ in memory]
        return (memory, mask), cache

    def next(self, memory: Any, cache: Any, token: Array, index: Array) -> tuple[Array, Any]:
        memory, source_mask = memory
        x = self.embed(token[:, None], jnp.full_like(token, index)[:, None], False)
        mask = (jnp.arange(cache[0][0].shape[1]) <= index)[None, None]
        new = []
        for layer, written, source in zip(self.decoder, cache, memory, strict=True):
            both = zip(written, layer.attention.keys_values(x), strict=True)
            new.append(
                tuple(jax.lax.dynamic_update_slice_in_dim(all, one, index, 1) for all, one in both)
            )
            x = layer(x, new[-1], mask, source, source_mask, False)
        return self.predict(x)[:, 0], new


def _wide(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
