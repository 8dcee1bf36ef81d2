"""The networks of translation compute what PyTorch's layers compute, with the same weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import losses, packed
from jaxhist.models import transformer
from jaxhist.models.seq2seq import LSTM, Seq2Seq
from jaxhist.models.transformer import Attention, DecoderLayer, EncoderLayer, Size, Transformer

torch = pytest.importorskip("torch", reason="parity needs the extra [parity]")

V = 11
SIZE = Size(layers=2, width=8, hidden=12, heads=2, dropout=0.0)
# What torch's layers call the same; the eps is flax's, and a norm comes after each sublayer.
OPTIONS = {"dropout": 0.0, "layer_norm_eps": 1e-6, "batch_first": True, "norm_first": False}

# Three pairs, each in a row of its own; 1 is EOS, 0 padding.
SOURCE = np.array([[3, 4, 5, 1, 0], [6, 1, 0, 0, 0], [7, 8, 9, 10, 1]])
TARGET = np.array([[4, 4, 1, 0], [5, 6, 7, 1], [8, 1, 0, 0]])
REAL = TARGET != packed.PAD


@pytest.fixture(autouse=True)
def double():
    """In float64."""
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


def agree(one, other):
    """Trees of arrays, of the same structure."""
    array = lambda leaf: leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else leaf
    one, other = jax.tree.map(array, one), jax.tree.map(array, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), one, other)


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape)


def drawn(module):
    """The module of torch with weights far from what they begin with.

    Of biases that do not exist here, those of attention and the second ones of an LSTM, with zero.
    """
    with torch.no_grad():
        for name, parameter in module.double().named_parameters():
            if "in_proj_bias" in name or "out_proj.bias" in name or "bias_hh" in name:
                parameter.zero_()
            else:
                parameter.normal_(std=0.5)
    return module


def gradients(module, loss):
    """The module of torch, after `backward`, with its gradients in the place of its weights."""
    loss.backward()
    for parameter in module.parameters():
        parameter.data = parameter.grad
    return module


# The weights of torch's layers under flax's names and in its layouts.


def array(tensor):
    return jnp.asarray(tensor.detach().numpy().copy())


def dense(layer):
    return {"kernel": array(layer.weight).T, "bias": array(layer.bias)}


def norm(layer):
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def attention(layer):
    matrices = [*jnp.split(array(layer.in_proj_weight), 3), array(layer.out_proj.weight)]
    names = "W_q", "W_k", "W_v", "W_o"
    return {name: {"kernel": W.T} for name, W in zip(names, matrices, strict=True)}


def encoder_layer(layer):
    return {
        "attention": attention(layer.self_attn),
        "feed_forward": {"W_1": dense(layer.linear1), "W_2": dense(layer.linear2)},
        "norms_0": norm(layer.norm1),
        "norms_1": norm(layer.norm2),
    }


def decoder_layer(layer):
    return encoder_layer(layer) | {
        "source_attention": attention(layer.multihead_attn),
        "norms_2": norm(layer.norm3),
    }


def lstm(layer, number=0):
    names = "weight_ih", "weight_hh", "bias_ih"
    W, U, b = (array(getattr(layer, f"{name}_l{number}")) for name in names)
    return {"W": {"kernel": W.T, "bias": b}, "U": U.T}


def test_attention():
    """To keys that are padding nothing is paid."""
    layer = drawn(torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True))
    x, y, real = normal(3, 4, 8), normal(3, 5, 8), SOURCE != packed.PAD
    model = Attention(8, 2, None)

    def apply(module):
        return module(x, module.keys_values(y), real[:, None, :])

    params = {"params": attention(layer)}
    got, seen = model.apply(params, method=apply, mutable="intermediates")
    want, weights = layer(
        *map(torch.from_numpy, (x, y, y)),
        key_padding_mask=torch.from_numpy(~real),
        average_attn_weights=False,
    )
    agree((got, seen["intermediates"]["weights"][0]), (want, weights))


def test_encoder_layer():
    layer = drawn(torch.nn.TransformerEncoderLayer(8, 2, 12, **OPTIONS))
    x, real = normal(3, 5, 8), SOURCE != packed.PAD
    model = EncoderLayer(SIZE, None)
    got = model.apply({"params": encoder_layer(layer)}, x, real[:, None, :], False)
    want = layer(torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(~real))
    agree(got, want)


def test_decoder_layer():
    layer = drawn(torch.nn.TransformerDecoderLayer(8, 2, 12, **OPTIONS))
    x, memory, real = normal(3, 4, 8), normal(3, 5, 8), SOURCE != packed.PAD
    before = np.tri(4, dtype=bool)

    def apply(module):
        own = module.attention.keys_values(x)
        source = module.source_attention.keys_values(memory)
        return module(x, own, before[None], source, real[:, None, :], False)

    got = DecoderLayer(SIZE, None).apply({"params": decoder_layer(layer)}, method=apply)
    want = layer(
        torch.from_numpy(x),
        torch.from_numpy(memory),
        tgt_mask=torch.from_numpy(~before),
        memory_key_padding_mask=torch.from_numpy(~real),
    )
    agree(got, want)


class TorchTransformer(torch.nn.Module):
    """torch.nn.Transformer without the norms behind its stacks, between embedding and logits."""

    def __init__(self):
        super().__init__()
        layers, width, hidden, heads, _ = SIZE
        self.embedding = torch.nn.Embedding(V, width)
        self.stacks = torch.nn.Transformer(width, heads, layers, layers, hidden, **OPTIONS)
        self.stacks.encoder.norm = self.stacks.decoder.norm = None

    def embed(self, tokens):
        position = jnp.arange(tokens.shape[1])
        waves = torch.from_numpy(np.array(transformer.sinusoids(position, SIZE.width)))
        return self.embedding(torch.from_numpy(tokens)) * math.sqrt(SIZE.width) + waves

    def forward(self, source, target):
        T, padding = target.shape[1], torch.from_numpy(source == packed.PAD)
        shifted = np.concatenate([np.full((len(target), 1), packed.EOS), target[:, :-1]], 1)
        out = self.stacks(
            self.embed(source),
            self.embed(shifted),
            tgt_mask=torch.from_numpy(~np.tri(T, dtype=bool)),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return out @ self.embedding.weight.T

    def as_flax(self):
        tree = {"embedding": {"embedding": array(self.embedding.weight)}}
        for i, layer in enumerate(self.stacks.encoder.layers):
            tree[f"encoder_{i}"] = encoder_layer(layer)
        for i, layer in enumerate(self.stacks.decoder.layers):
            tree[f"decoder_{i}"] = decoder_layer(layer)
        return tree


class TorchSeq2Seq(torch.nn.Module):
    """Two stacks of torch.nn.LSTM between embeddings and logits; a sentence at a time."""

    def __init__(self, n=6):
        super().__init__()
        self.source_embedding, self.target_embedding = (torch.nn.Embedding(V, n) for _ in range(2))
        self.encoder, self.decoder = (torch.nn.LSTM(n, n, 2, batch_first=True) for _ in range(2))
        self.output = torch.nn.Linear(n, V)

    def forward(self, source, target):
        rows = []
        for s, t in zip(source, target, strict=True):
            s, t = (torch.from_numpy(tokens[tokens != packed.PAD]) for tokens in (s, t))
            _, state = self.encoder(self.source_embedding(s))
            x = self.target_embedding(torch.roll(t, 1))  # EOS, the last, is what is read first
            logits = self.output(self.decoder(x, state)[0])
            rows.append(torch.nn.functional.pad(logits, (0, 0, 0, target.shape[1] - len(t))))
        return torch.stack(rows)

    def as_flax(self):
        tree = {"output": dense(self.output)}
        for name in ("source_embedding", "target_embedding"):
            tree[name] = {"embedding": array(getattr(self, name).weight)}
        for i in range(2):
            tree[f"encoder_{i}"] = lstm(self.encoder, i)
            tree[f"decoder_{i}"] = lstm(self.decoder, i)
        return tree


MODELS = {
    "transformer": (Transformer(V, SIZE), TorchTransformer),
    "seq2seq": (Seq2Seq((V, V), n=6, layers=2), TorchSeq2Seq),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_of_a_whole_network(name):
    """Of the mean loss, with smoothed labels, over all tokens but padding."""
    model, twin = MODELS[name]
    twin = drawn(twin())
    params = twin.as_flax()

    def loss(params):
        logits = model.apply({"params": params}, SOURCE, TARGET, train=True)
        values = losses.smoothed_cross_entropy(logits, TARGET, 0.1)
        return losses.per_real(values, REAL).mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    torch_logits = twin(SOURCE, TARGET)
    smoothed = torch.nn.CrossEntropyLoss(ignore_index=packed.PAD, label_smoothing=0.1)
    torch_loss = smoothed(torch_logits.flatten(0, 1), torch.from_numpy(TARGET.flatten()))
    agree((value, logits[REAL]), (torch_loss, torch_logits[torch.from_numpy(REAL)]))
    agree(gradient, gradients(twin, torch_loss).as_flax())


def test_lstm():
    """From given states on; all outputs, and the last state."""
    layer = drawn(torch.nn.LSTM(5, 6, batch_first=True))
    x, c, h = normal(3, 4, 5), normal(3, 6), normal(6, 3).T
    begins = np.arange(4)[None] == np.zeros((3, 1))
    start = tuple(np.repeat(state[:, None], 4, 1) for state in (c, h))
    got_c, got_h = LSTM(6).apply({"params": lstm(layer)}, x, begins, start)
    want, (want_h, want_c) = layer(
        torch.from_numpy(x), (torch.from_numpy(h[None].copy()), torch.from_numpy(c[None]))
    )
    agree((got_h, got_c[:, -1], got_h[:, -1]), (want, want_c[0], want_h[0]))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy(epsilon):
    logits, label = 3 * normal(4, 5, V), np.arange(20).reshape(4, 5) % V
    got = losses.smoothed_cross_entropy(logits, label, epsilon)
    smoothed = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=epsilon)
    agree(got, smoothed(torch.from_numpy(logits).movedim(-1, 1), torch.from_numpy(label)))
