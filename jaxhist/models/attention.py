"""Neural Machine Translation by Jointly Learning to Align and Translate.

Dzmitry Bahdanau, Kyunghyun Cho, Yoshua Bengio, 2014. arXiv:1409.0473. Here: `RNNsearch`, of
appendix A. Its methods are those of all models of translation (`seq2seq`).

    B rows      S, T tokens in a row of sources and of targets      n units      V vocabulary
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import packed
from jaxhist.models.seq2seq import GatedUnits, Maxout, orthogonal, small_normal, unroll

Array = jax.Array


def gated_unit(x: Array, s: Array, U_r: Array, U_z: Array, U: Array) -> Array:
    """s' = (1 - z) s + z tanh(W x + U (r s)); r, z = s(W x + U s). Appendix A.1.1.

    Cho's with 1 - z in the place of z. Shapes as there: x [B, 3n], s [B, n], U [n, n].
    """
    x_r, x_z, x_s = jnp.split(x, 3, axis=-1)
    r, z = nn.sigmoid(x_r + s @ U_r), nn.sigmoid(x_z + s @ U_z)
    return (1 - z) * s + z * jnp.tanh(x_s + (r * s) @ U)


class Memory(NamedTuple):
    """What the decoder looks at."""

    h: Array  # the annotations, forward and backward, [B, S, 2n]
    U_a_h: Array  # [B, S, n]
    sentence: Array  # [B, S], as `packed.places` has it


class RNNsearch(nn.Module):
    """A decoder that looks at all positions of the source, more at those that it aligns with.

    Logits [B, T, V]. The alignments, a [B, T, S], are sown as the intermediate "alignment".
    """

    vocabularies: tuple[int, int]  # of the source, of the target
    n: int = 1000  # also n', of the alignment
    m: int = 620  # of an embedding
    l: int = 500  # noqa: E741, pairs of the output
    dropout: float = 0.0  # Not in the paper: of the embeddings and the output (arXiv:1409.2329)

    def setup(self):
        source, target = self.vocabularies
        n, normal = self.n, small_normal
        alignment = nn.initializers.normal(0.001)  # appendix B.1
        self.source_embedding = nn.Embed(source, self.m, embedding_init=normal)
        self.target_embedding = nn.Embed(target, self.m, embedding_init=normal)
        self.forward, self.backward = GatedUnits(n, gated_unit), GatedUnits(n, gated_unit)
        self.W_s = nn.Dense(n, kernel_init=normal)
        self.W = nn.Dense(3 * n, kernel_init=normal)  # of r, of z and of the new state
        self.C = self.param("C", normal, (2 * n, 3 * n))
        self.U = [self.param(name, orthogonal, (n, n)) for name in ("U_r", "U_z", "U")]
        self.W_a = self.param("W_a", alignment, (n, n))
        self.U_a = nn.Dense(n, kernel_init=alignment)
        self.v_a = self.param("v_a", nn.initializers.zeros, (n,))
        self.output = Maxout(target, self.l, self.dropout)
        self.drop = nn.Dropout(self.dropout)

    def encode(self, source: Array, train: bool) -> Memory:
        x = self.drop(self.source_embedding(source), deterministic=not train)
        sentence, position = packed.places(source)
        forward = self.forward(x, position == 0)
        backward = self.backward(x, source == packed.EOS, reverse=True)
        h = jnp.concatenate([forward, backward], -1)
        return Memory(h, self.U_a(h), sentence)

    def start(self, memory: Memory, first: Array) -> Array:
        """s_0, of the backward state of the first word. [B, T] indices -> [B, T, n]"""
        return jnp.tanh(self.W_s(packed.at(memory.h[..., self.n :], first)))

    def cell(self, memory: Memory, y: Array, sentence: Array, s: Array) -> tuple[Array, ...]:
        """W E y_(i-1) [B, 3n], the number of the sentence [B], s_(i-1) [B, n] -> s_i, c_i, a_i."""
        e = jnp.tanh((s @ self.W_a)[:, None] + memory.U_a_h) @ self.v_a  # [B, S]
        e = jnp.where(memory.sentence == sentence[:, None], e, -1e9)
        a = jax.nn.softmax(e)
        c = jnp.einsum("bs,bsn->bn", a, memory.h)
        return gated_unit(y + c @ self.C, s, *self.U), c, a

    def __call__(self, source: Array, target: Array, *, train: bool) -> Array:
        sentence, position = packed.places(target)
        memory = self.encode(source, train)
        start = self.start(memory, packed.first(source, sentence))
        y = self.target_embedding(packed.shifted(target))
        y = self.drop(y, deterministic=not train)

        def cell(x, s_im1):
            s, c, a = self.cell(memory, *x, s_im1)
            return s, (s_im1, c, a)

        s_im1, c, a = unroll(cell, (self.W(y), sentence), position == 0, start)
        self.sow("intermediates", "alignment", a)
        return self.output(s_im1, y, c, train=train)

    def begin(self, source: Array, length: int) -> tuple[Any, Any]:
        memory = self.encode(source, False)
        return memory, self.start(memory, jnp.zeros_like(source[:, :1]))[:, 0]

    def next(self, memory: Any, cache: Any, token: Array, index: Array) -> tuple[Array, Any]:
        y = self.target_embedding(token)
        s, c, _ = self.cell(memory, self.W(y), jnp.ones_like(token), cache)
        return self.output(cache, y, c, train=False), s
