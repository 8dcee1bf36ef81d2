"""Sequence to Sequence Learning with Neural Networks, and the encoder and decoder before it.

Ilya Sutskever, Oriol Vinyals, Quoc V. Le, 2014. arXiv:1409.3215. Here: `Seq2Seq`.
Kyunghyun Cho, Bart van Merrienboer, Caglar Gulcehre, Dzmitry Bahdanau, Fethi Bougares, Holger
Schwenk, Yoshua Bengio, 2014. arXiv:1406.1078. Here: the `gated_unit`, and `RNNencdec`, the form of
their network that Bahdanau et al. (arXiv:1409.0473) compare with.

Both read a sentence into a vector of fixed size and write its translation from it. All models of
translation have the same four methods; tokens are rows of sentences, as `packed` has them.

    __call__(source [B, S], target [B, T], train=)    -> logits [B, T, V]
    begin(source [B, S], length)                      -> memory, cache: of one sentence to a row
    next(memory, cache, token [B], index)             -> logits [B, V], cache

    B rows      S, T tokens in a row of sources and of targets      n units      V vocabulary
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import packed

Array = jax.Array
Initializer = Callable[..., Array]


def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Section 3.4 of Sutskever et al.: between -0.08 and 0.08."""
    return jax.random.uniform(key, shape, dtype, -0.08, 0.08)


small_normal = nn.initializers.normal(0.01)  # of Cho and of Bahdanau
orthogonal = nn.initializers.orthogonal()  # their recurrent matrices


def lstm(x: Array, state: tuple[Array, Array], U: Array) -> tuple[Array, Array]:
    """c' = f c + i g, h' = o tanh(c'); i, f, o = s(W x + U h + b), g = tanh(W x + U h + b).

    Args:
      x: W x + b of i, f, g and o, [B, 4n].
      state: c and h, [B, n] each.
      U: [n, 4n].
    """
    c, h = state
    i, f, g, o = jnp.split(x + h @ U, 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    return c, nn.sigmoid(o) * jnp.tanh(c)


def gated_unit(x: Array, h: Array, U_r: Array, U_z: Array, U: Array) -> Array:
    """h' = z h + (1 - z) tanh(W x + U (r h)); r, z = s(W x + U h). Cho et al., eq. 5 to 8.

    Args:
      x: W x + b of r, of z and of the new state, [B, 3n].
      h: [B, n].
      U_r, U_z, U: [n, n].
    """
    x_r, x_z, x_h = jnp.split(x, 3, axis=-1)
    r, z = nn.sigmoid(x_r + h @ U_r), nn.sigmoid(x_z + h @ U_z)
    return z * h + (1 - z) * jnp.tanh(x_h + (r * h) @ U)


def unroll(cell: Callable, x: Array, begins: Array, start: Any, reverse: bool = False) -> Any:
    """Run a cell along rows, from a new state where a sentence begins.

    Args:
      cell: (x [B, ...], state) -> state, output; the state is a pytree of [B, n].
      x: [B, T, ...].
      begins: [B, T] bool.
      start: the states to begin with, a pytree of [B, T, n]; what it is elsewhere does not matter.
      reverse: from the right to the left.

    Returns:
      The outputs, a pytree of [B, T, ...].
    """

    def step(state, now):
        x, begins, start = now
        state = jax.tree.map(lambda new, old: jnp.where(begins[:, None], new, old), start, state)
        return cell(x, state)

    along = lambda tree: jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)
    zero = jax.tree.map(lambda a: jnp.zeros_like(a[:, 0]), start)
    return along(jax.lax.scan(step, zero, along((x, begins, start)), reverse=reverse)[1])


class LSTM(nn.Module):
    """A layer of long short-term memory, without peepholes."""

    n: int
    initializer: Initializer = uniform

    def setup(self):
        self.W = nn.Dense(4 * self.n, kernel_init=self.initializer)
        self.U = self.param("U", self.initializer, (self.n, 4 * self.n))

    def __call__(self, x: Array, begins: Array, start: Any = None) -> tuple[Array, Array]:
        """[B, T, D], [B, T] -> c and h, [B, T, n] each. `start`: as in `unroll`, 0 if not given."""
        if start is None:
            start = (jnp.zeros((*x.shape[:2], self.n), x.dtype),) * 2
        U = self.U
        return unroll(lambda x, state: (lstm(x, state, U),) * 2, self.W(x), begins, start)

    def step(self, x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return lstm(self.W(x), state, self.U)


class Seq2Seq(nn.Module):
    """Deep LSTMs: one reads the source, the other goes on from its states and writes the target.

    The source is reversed, or not, before it comes here. Logits [B, T, V].
    """

    vocabularies: tuple[int, int]  # of the source, of the target
    n: int = 1000
    layers: int = 4
    dropout: float = 0.0  # Not in the paper: of what goes up (arXiv:1409.2329)

    def setup(self):
        source, target = self.vocabularies
        self.source_embedding = nn.Embed(source, self.n, embedding_init=uniform)
        self.target_embedding = nn.Embed(target, self.n, embedding_init=uniform)
        self.encoder = [LSTM(self.n) for _ in range(self.layers)]
        self.decoder = [LSTM(self.n) for _ in range(self.layers)]
        self.output = nn.Dense(target, kernel_init=uniform)
        self.drop = nn.Dropout(self.dropout)

    def encode(self, source: Array, train: bool) -> list[tuple[Array, Array]]:
        """The states of each layer, [B, S, n]."""
        begins = packed.places(source).position == 0
        x, states = self.source_embedding(source), []
        for layer in self.encoder:
            states.append(layer(self.drop(x, deterministic=not train), begins))
            x = states[-1][1]
        return states

    def __call__(self, source: Array, target: Array, *, train: bool) -> Array:
        sentence, position = packed.places(target)
        end = packed.last(source, sentence)
        start = jax.tree.map(lambda a: packed.at(a, end), self.encode(source, train))
        x = self.target_embedding(packed.shifted(target))
        for layer, from_encoder in zip(self.decoder, start, strict=True):
            x = self.drop(x, deterministic=not train)
            x = layer(x, position == 0, from_encoder)[1]
        return self.output(self.drop(x, deterministic=not train))

    def begin(self, source: Array, length: int) -> tuple[Any, Any]:
        end = packed.last(source, jnp.ones_like(source[:, :1]))
        return (), jax.tree.map(lambda a: packed.at(a, end)[:, 0], self.encode(source, False))

    def next(self, memory: Any, cache: Any, token: Array, index: Array) -> tuple[Array, Any]:
        x, states = self.target_embedding(token), []
        for layer, state in zip(self.decoder, cache, strict=True):
            states.append(layer.step(x, state))
            x = states[-1][1]
        return self.output(x), states


class GatedUnits(nn.Module):
    """A layer of gated units."""

    n: int
    unit: Callable = gated_unit

    def setup(self):
        self.W = nn.Dense(3 * self.n, kernel_init=small_normal)
        self.U = [self.param(name, orthogonal, (self.n, self.n)) for name in ("U_r", "U_z", "U")]

    def __call__(self, x: Array, begins: Array, start: Any = None, reverse: bool = False) -> Array:
        """[B, T, D], [B, T] -> h [B, T, n]. `start`: as in `unroll`, 0 if not given."""
        if start is None:
            start = jnp.zeros((*x.shape[:2], self.n), x.dtype)
        unit, U = self.unit, self.U
        return unroll(lambda x, h: (unit(x, h, *U),) * 2, self.W(x), begins, start, reverse)

    def step(self, x: Array, h: Array) -> Array:
        return self.unit(self.W(x), h, *self.U)


class Maxout(nn.Module):
    """The largest of each pair of 2 l units, then a linear layer: the deep output.

    Bahdanau et al., appendix A.2.2: t~_i = U_o s_(i-1) + V_o E y_(i-1) + C_o c_i, [B, ..., 2 l].
    """

    vocabulary: int
    l: int  # noqa: E741, the paper's name
    dropout: float = 0.0

    @nn.compact
    def __call__(self, s: Array, y: Array, c: Array, *, train: bool) -> Array:
        inputs = jnp.concatenate([s, y, c], -1)  # so U_o, V_o and C_o are one matrix
        t = nn.Dense(2 * self.l, kernel_init=small_normal, name="t")(inputs)
        t = t.reshape(*t.shape[:-1], self.l, 2).max(-1)
        t = nn.Dropout(self.dropout)(t, deterministic=not train)
        return nn.Dense(self.vocabulary, kernel_init=small_normal, name="W_o")(t)


def before(states: Array, begins: Array, start: Array) -> Array:
    """s_(i-1) of s_i, all [B, T, n]."""
    return jnp.where(begins[..., None], start, jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0))))


class RNNencdec(nn.Module):
    """Gated units: the last state of the encoder is what every step of the decoder sees.

    As in Bahdanau et al., section 4.2. Logits [B, T, V].
    """

    vocabularies: tuple[int, int]  # of the source, of the target
    n: int = 1000
    m: int = 620  # of an embedding
    l: int = 500  # noqa: E741, pairs of the output
    dropout: float = 0.0  # Not in the paper: of the embeddings and the output (arXiv:1409.2329)

    def setup(self):
        source, target = self.vocabularies
        self.source_embedding = nn.Embed(source, self.m, embedding_init=small_normal)
        self.target_embedding = nn.Embed(target, self.m, embedding_init=small_normal)
        self.encoder, self.decoder = GatedUnits(self.n), GatedUnits(self.n)
        self.W_s = nn.Dense(self.n, kernel_init=small_normal)
        self.output = Maxout(target, self.l, self.dropout)
        self.drop = nn.Dropout(self.dropout)

    def encode(self, source: Array, train: bool) -> Array:
        x = self.drop(self.source_embedding(source), deterministic=not train)
        return self.encoder(x, packed.places(source).position == 0)

    def __call__(self, source: Array, target: Array, *, train: bool) -> Array:
        sentence, position = packed.places(target)
        c = packed.at(self.encode(source, train), packed.last(source, sentence))
        y = self.target_embedding(packed.shifted(target))
        y = self.drop(y, deterministic=not train)
        begins, start = position == 0, jnp.tanh(self.W_s(c))
        s = self.decoder(jnp.concatenate([y, c], -1), begins, start)
        return self.output(before(s, begins, start), y, c, train=train)

    def begin(self, source: Array, length: int) -> tuple[Any, Any]:
        end = packed.last(source, jnp.ones_like(source[:, :1]))
        c = packed.at(self.encode(source, False), end)[:, 0]
        return c, jnp.tanh(self.W_s(c))

    def next(self, memory: Any, cache: Any, token: Array, index: Array) -> tuple[Array, Any]:
        y = self.target_embedding(token)
        logits = self.output(cache, y, memory, train=False)
        return logits, self.decoder.step(jnp.concatenate([y, memory], -1), cache)
