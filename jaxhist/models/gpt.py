"""GPT-2 and GPT-3, and the block of GPT-1.

Alec Radford, Karthik Narasimhan, Tim Salimans, Ilya Sutskever, Improving Language Understanding by
Generative Pre-Training, 2018. Radford, Jeffrey Wu, Rewon Child, David Luan, Dario Amodei,
Sutskever, Language Models are Unsupervised Multitask Learners, 2019. Tom B. Brown, Benjamin Mann,
Nick Ryder, Melanie Subbiah and 27 others, Language Models are Few-Shot Learners, 2020.
arXiv:2005.14165.

    B rows      T tokens to read, S tokens that may be looked at      V vocabulary
    D width     H heads     K = D / H width of a head      L layers
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import UserError, packed
from jaxhist.devices import BATCH, named
from jaxhist.models.transformer import attend

Array = jax.Array
Cache = tuple[Array, Array]  # keys and values of what has been read, [B, L, S, H, K] each

# Not in the papers of GPT-2 and GPT-3: how weights begin, but for the last products of the
# sublayers. As in GPT-1.
DEVIATION = 0.02


class Size(NamedTuple):
    """L, D and H; a feed-forward layer has 4 D units."""

    layers: int
    width: int
    heads: int


# GPT-2, table 2. The sizes in the paper's text, such as 117M, are counted wrongly.
GPT2 = {
    "gpt2": Size(12, 768, 12),
    "gpt2-medium": Size(24, 1024, 16),
    "gpt2-large": Size(36, 1280, 20),
    "gpt2-xl": Size(48, 1600, 25),
}
# GPT-3, table 2.1. It prints 24 heads of 128 for a width of 2048, and a width of 5140 for 40 heads
# of 128; the parameters in its table D.1 are those of 16 heads, and of 5120.
GPT3 = {
    "gpt3-125m": Size(12, 768, 12),
    "gpt3-350m": Size(24, 1024, 16),
    "gpt3-760m": Size(24, 1536, 16),
    "gpt3-1.3b": Size(24, 2048, 16),
    "gpt3-2.7b": Size(32, 2560, 32),
    "gpt3-6.7b": Size(32, 4096, 32),
    "gpt3-13b": Size(40, 5120, 40),
    "gpt3-175b": Size(96, 12288, 96),
}
VOCABULARY = 50_257  # 256 bytes, 50,000 merges, and the end of a document

# Each of the devices along the axis "tensor" has some of the heads, and some of the hidden units.
TENSOR = {
    "attention/qkv/kernel": (None, None, "tensor", None),
    "attention/qkv/bias": (None, "tensor", None),
    "attention/project/kernel": ("tensor", None),
    "feed_forward/expand/kernel": (None, "tensor"),
    "feed_forward/expand/bias": ("tensor",),
    "feed_forward/project/kernel": ("tensor", None),
}

# Where a sublayer is normalized: what it reads (GPT-2, section 2.3), or its sum with that (GPT-1).
Norm = Literal["pre", "post"]


class Attention(nn.Module):
    """Masked multi-head attention, with biases."""

    size: Size
    deviation: float  # of the last product
    band: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array, cache: Cache | None, banded: Array, index: Array | int
    ) -> tuple[Array, Cache | None]:
        """[B, T, D] at the positions from `index` on -> the same, and the cache with them in it.

        Without a cache nothing is before x. `banded`, [] bool: only the last `band` tokens, the
        one at the position itself with them, may be looked at.
        """
        heads = self.size.heads, self.size.width // self.size.heads
        qkv = named(_dense((3, *heads), self, "qkv")(x), BATCH, None, None, "tensor", None)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if cache is not None:
            write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index, axis=1)
            cache = k, v = write(cache[0], k), write(cache[1], v)
        distance = (index + jnp.arange(x.shape[1]))[:, None] - jnp.arange(k.shape[1])[None]
        mask = distance >= 0
        if self.band:
            mask &= jnp.logical_not(banded) | (distance < self.band)
        out, _ = attend(q, k, v, mask[None])
        out = out.reshape(x.shape)
        return _dense(self.size.width, self, "project", self.deviation)(out), cache


class FeedForward(nn.Module):
    """GELU(x W_1 + b_1) W_2 + b_2, of four times the width inside."""

    size: Size
    deviation: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = named(_dense(4 * self.size.width, self, "expand")(x), BATCH, None, "tensor")
        x = nn.gelu(x, approximate=True)
        return _dense(self.size.width, self, "project", self.deviation)(x)


def _dense(
    width: int | tuple[int, ...], of: nn.Module, name: str, deviation: float = DEVIATION
) -> nn.DenseGeneral:
    normal = nn.initializers.normal(deviation)
    return nn.DenseGeneral(width, kernel_init=normal, dtype=of.dtype, name=name)


class Block(nn.Module):
    """Attention, then a feed-forward layer, each added to what it reads."""

    size: Size
    norm: Norm
    band: int
    dropout: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(
        self, x: Array, cache: Cache | None, banded: Array, index: Array | int
    ) -> tuple[Array, Cache | None]:
        # GPT-2, section 2.3: 1 / sqrt(N), N the number of residual layers, two to a block.
        scale = 1 / math.sqrt(2 * self.size.layers) if self.norm == "pre" else 1
        inside = self.size, scale * DEVIATION
        norms = [_norm(self.dtype, f"norm_{i}") for i in (1, 2)]
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        attention = Attention(*inside, self.band, self.dtype, name="attention")
        feed_forward = FeedForward(*inside, self.dtype, name="feed_forward")
        whole = lambda x: named(x, BATCH, None, None)
        if self.norm == "pre":
            out, cache = attention(norms[0](x), cache, banded, index)
            x = whole(x + drop(out))
            return whole(x + drop(feed_forward(norms[1](x)))), cache
        out, cache = attention(x, cache, banded, index)
        x = norms[0](whole(x + drop(out)))
        return norms[1](whole(x + drop(feed_forward(x)))), cache


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)


class GPT(nn.Module):
    """The decoder of a Transformer alone: it predicts the token that comes next.

    Logits are [B, T, V], at least float32. The layers are one program in a loop over their
    parameters, which lie in arrays with a first axis for the layer.
    """

    vocabulary: int
    size: Size
    length: int  # T at most: there are so many positions
    norm: Norm = "pre"
    # GPT-3, section 2.1: every other layer is locally banded, here of so many tokens; 0: none is.
    # It is computed as a mask, which costs as much as attention to all tokens.
    band: int = 0
    dropout: float = 0.0  # of embeddings and of what a sublayer adds
    remat: bool = False  # layers are computed again for the gradient, and so need not be kept
    unroll: int = 1  # layers in the loop's body; as many as there are: there is no loop
    dtype: Any = None  # of the products; None is that of the parameters

    def __call__(self, tokens: Array, *, train: bool) -> Array:
        """[B, T] -> the logits of the tokens behind each."""
        return self.read(tokens, train=train)[1]

    def read(self, tokens: Array, *, train: bool) -> tuple[Array, Array]:
        """[B, T] -> what the last layer makes of each, [B, T, D], and the logits."""
        return self._read(tokens, None, 0, train)[:2]

    def empty(self, count: int) -> Cache:
        """A cache of S = `length` for B = `count` rows, in which nothing is yet."""
        layers, width, heads = self.size
        shape = count, layers, self.length, heads, width // heads
        return (jnp.zeros(shape, self.dtype or jnp.float32),) * 2

    def extend(self, cache: Cache, tokens: Array, index: Array | int) -> tuple[Array, Cache]:
        """Read [B, T] tokens at the positions from `index` on, behind what is in the cache."""
        return self._read(tokens, cache, index, False)[1:]

    @nn.compact
    def _read(self, tokens, cache, index, train) -> tuple[Array, Array, Cache | None]:
        layers, width, heads = self.size
        if width % heads:
            raise UserError(f"a width of {width} cannot be divided among {heads} heads")
        if tokens.shape[1] > self.length:
            raise UserError(f"{tokens.shape[1]} tokens are more than {self.length}")
        normal = nn.initializers.normal(DEVIATION)
        embed = partial(nn.Embed, features=width, embedding_init=normal, dtype=self.dtype)
        embedding = embed(self.vocabulary, name="embedding")
        position = embed(self.length, name="position")(index + jnp.arange(tokens.shape[1]))
        x = named(embedding(tokens) + position[None], BATCH, None, None)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        loop = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(1, 0, nn.broadcast),
            out_axes=1,
            length=layers,
            unroll=self.unroll,
        )
        banded = jnp.arange(layers) % 2 == 1
        options = self.size, self.norm, self.band, self.dropout, self.dtype, train
        x, cache = loop(*options, name="layers")(x, cache, banded, index)
        if self.norm == "pre":
            x = _norm(self.dtype, "norm")(x)
        return x, named(_wide(embedding.attend(x)), BATCH, None, None), cache


class Classifier(nn.Module):
    """A network that has learned a language, fine-tuned to tell classes: GPT-1, section 3.2."""

    network: nn.Module  # `GPT`, or any other with its `read`
    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool) -> tuple[Array, Array]:
        """[B, T] -> the logits of the classes [B, classes], from what the last layer makes of the
        last token that is no padding; and those of the tokens behind each, [B, T, V]."""
        x, logits = self.network.read(tokens, train=train)
        x = packed.at(x, jnp.sum(tokens != packed.PAD, 1, keepdims=True) - 1)[:, 0]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _wide(
            nn.Dense(self.classes, kernel_init=nn.initializers.normal(DEVIATION), name="output")(x)
        ), logits


def _wide(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
