"""BERT and GPT-2 compute what Hugging Face's PyTorch models compute, with the same weights."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bert_words
from jaxhist import losses, packed
from jaxhist.models import bert, gpt

EXTRA = "parity with Hugging Face needs the extra [parity]"
torch = pytest.importorskip("torch", reason=EXTRA)
transformers = pytest.importorskip("transformers", reason=EXTRA)

V, CLASSES = 40, 3
BERT = bert.Size(layers=2, width=16, heads=2)
GPT2 = gpt.Size(layers=3, width=16, heads=2)
GPT = gpt.GPT(V, GPT2, length=16)

# [CLS] is 2, [SEP] 3 and [PAD] 0. Of two segments, of two with padding, and of one.
ROWS = np.array([[2, 10, 4, 3, 12, 4, 14, 3], [2, 4, 3, 21, 3, 0, 0, 0], [2, 9, 8, 4, 3, 0, 0, 0]])
SEGMENT = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
REAL = ROWS != packed.PAD
# What was at 4, and whether the second segment follows. Where a label is 0 there is no position.
POSITION, LABEL = np.array([[2, 5], [1, 0], [3, 0]]), np.array([[11, 13], [20, 0], [7, 0]])
FOLLOWS = np.array([1, 0, 1])
TOKENS = np.random.default_rng(0).integers(V, size=(2, 16))


def drawn(model, config, dtype=torch.float32, **sizes):
    """Hugging Face's model without dropout, its weights far from where they begin."""
    torch.manual_seed(0)
    twin = model(config(vocab_size=V, attn_implementation="eager", **sizes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return twin


def drawn_bert(name, dtype=torch.float32):
    return drawn(
        getattr(transformers, name),
        transformers.BertConfig,
        dtype,
        hidden_size=BERT.width,
        num_hidden_layers=BERT.layers,
        num_attention_heads=BERT.heads,
        intermediate_size=4 * BERT.width,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        max_position_embeddings=bert.POSITIONS,
        num_labels=CLASSES,
    )


def drawn_gpt2(dtype=torch.float32):
    return drawn(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        dtype,
        n_embd=GPT2.width,
        n_layer=GPT2.layers,
        n_head=GPT2.heads,
        n_positions=GPT.length,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        bos_token_id=0,
        eos_token_id=0,
    )


def agree(one, other, tolerance=1e-5):
    """Trees of arrays, of the same structure and precision; the tolerance is absolute."""
    array = lambda leaf: leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else leaf

    def compare(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)

    jax.tree.map(compare, jax.tree.map(array, one), jax.tree.map(array, other))


def gradients(module, loss):
    """The module, after `backward`, with its gradients in the place of its weights."""
    loss.backward()
    for parameter in module.parameters():
        parameter.data = parameter.grad
    return module


# The weights of theirs under our names and in our layouts.


def array(tensor):
    return jnp.asarray(tensor.detach().numpy().copy())


def dense(layer):
    """Theirs lie [out, in], but for those of GPT-2, which lie as ours."""
    weight = array(layer.weight)
    return {
        "kernel": weight.T if isinstance(layer, torch.nn.Linear) else weight,
        "bias": array(layer.bias),
    }


def norm(layer):
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def embedding(layer):
    return {"embedding": array(layer.weight)}


def bert_layer(layer):
    inside, out = layer.attention.self, layer.attention.output
    return {
        "attention": {
            "W_q": dense(inside.query),
            "W_k": dense(inside.key),
            "W_v": dense(inside.value),
            "W_o": dense(out.dense),
        },
        "attention_norm": norm(out.LayerNorm),
        "W_1": dense(layer.intermediate.dense),
        "W_2": dense(layer.output.dense),
        "norm": norm(layer.output.LayerNorm),
    }


def encoder(twin):
    """Of a BertModel, with its pooler."""
    tree = {
        "words": embedding(twin.embeddings.word_embeddings),
        "positions": embedding(twin.embeddings.position_embeddings),
        "segments": embedding(twin.embeddings.token_type_embeddings),
        "norm": norm(twin.embeddings.LayerNorm),
    }
    for i, layer in enumerate(twin.encoder.layer):
        tree[f"layers_{i}"] = bert_layer(layer)
    return {"encoder": tree, "pooler": {"W": dense(twin.pooler.dense)}}


def pre_training(twin):
    words = twin.cls.predictions
    return encoder(twin.bert) | {
        "words": {"W": dense(words.transform.dense), "norm": norm(words.transform.LayerNorm)},
        "bias": array(words.bias),
        "follows": dense(twin.cls.seq_relationship),
    }


def block(layer):
    split = lambda x: x.reshape(*x.shape[:-1], 3, GPT2.heads, GPT2.width // GPT2.heads)
    return {
        "norm_1": norm(layer.ln_1),
        "attention": {
            "qkv": jax.tree.map(split, dense(layer.attn.c_attn)),
            "project": dense(layer.attn.c_proj),
        },
        "norm_2": norm(layer.ln_2),
        "feed_forward": {"expand": dense(layer.mlp.c_fc), "project": dense(layer.mlp.c_proj)},
    }


def gpt2(twin):
    """Our layers lie in arrays with a first axis for the layer."""
    inside = twin.transformer
    return {
        "embedding": embedding(inside.wte),
        "position": embedding(inside.wpe),
        "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(block, inside.h)),
        "norm": norm(inside.ln_f),
    }


def read(twin, **options):
    """What theirs makes of the rows."""
    tokens, real, segment = map(torch.from_numpy, (ROWS, 1 * REAL, SEGMENT))
    return twin(tokens, attention_mask=real, token_type_ids=segment, **options)


def test_bert():
    """All words' logits, what follows, and inside the embeddings, every layer and the pooler."""
    twin = drawn_bert("BertForPreTraining")
    model = bert.PreTraining(V, BERT)

    @jax.jit
    def apply(params):
        position = jnp.broadcast_to(jnp.arange(ROWS.shape[1])[None], ROWS.shape)
        inputs = ROWS, SEGMENT, position
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        return model.apply({"params": params}, *inputs, train=False, **options)

    (words, follows), seen = apply(pre_training(twin))
    inside = seen["intermediates"]["encoder"]
    x = [inside[name]["__call__"][0] for name in ("norm", "layers_0", "layers_1")]
    pooled = seen["intermediates"]["pooler"]["__call__"][0]

    want, within = read(twin), read(twin.bert, output_hidden_states=True)
    real = torch.from_numpy(REAL)
    agree((words[REAL], follows), (want.prediction_logits[real], want.seq_relationship_logits))
    agree([layer[REAL] for layer in x], [layer[real] for layer in within.hidden_states])
    agree((x[-1][REAL], pooled), (within.last_hidden_state[real], within.pooler_output))


def test_bert_that_tells_classes():
    twin = drawn_bert("BertForSequenceClassification")
    params = encoder(twin.bert) | {"output": dense(twin.classifier)}
    model = bert.Classifier(CLASSES, V, BERT)
    got = jax.jit(model.apply, static_argnames="train")(
        {"params": params}, ROWS, SEGMENT, train=False
    )
    agree(got, read(twin).logits)


def test_loss_and_gradients_of_bert():
    """Of hidden words and of what follows, in float64."""
    label = np.full_like(ROWS, -100)
    row, column = np.nonzero(LABEL)
    label[row, POSITION[row, column]] = LABEL[row, column]
    with jax.enable_x64(True):
        twin = drawn_bert("BertForPreTraining", torch.float64)
        model = bert.PreTraining(V, BERT)
        batch = {"tokens": ROWS, "segment": SEGMENT, "position": POSITION}
        batch |= {"label": LABEL, "follows": FOLLOWS}

        def loss(params):
            found = bert_words.compare(model, params, batch, train=False)
            words = losses.per_real(found["words"], found["real"])
            return words.mean() + found["follows"].mean()

        value, gradient = jax.jit(jax.value_and_grad(loss))(pre_training(twin))
        label, follows = map(torch.from_numpy, (label, FOLLOWS))
        want = read(twin, labels=label, next_sentence_label=follows).loss
        agree(value, want, 1e-12)
        agree(gradient, pre_training(gradients(twin, want)), 1e-12)


def test_gpt2():
    """Logits, every layer, and the mean loss of the next tokens."""
    twin = drawn_gpt2()
    params, tokens = gpt2(twin), torch.from_numpy(TOKENS)
    got = jax.jit(GPT.apply, static_argnames="train")({"params": params}, TOKENS, train=False)
    want = twin(tokens, labels=tokens, output_hidden_states=True)
    loss = losses.categorical_cross_entropy(got[:, :-1], TOKENS[:, 1:]).mean()
    agree((got, loss), (want.logits, want.loss))

    one = gpt.Block(GPT2, norm="pre", band=0, dropout=0.0, dtype=None, train=False)
    apply = jax.jit(lambda layer, x: one.apply({"params": layer}, x, None, jnp.array(False), 0)[0])
    *hidden, last = want.hidden_states
    x = params["embedding"]["embedding"][TOKENS] + params["position"]["embedding"][None]
    for i, theirs in enumerate(hidden):
        agree(x, theirs)
        x = apply(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]), x)
    agree(gpt._norm(None, "norm").apply({"params": params["norm"]}, x), last)


def test_gpt2_that_reads_on():
    """Five tokens, then one at a time; the keys and the values of all that was read, too."""
    twin = drawn_gpt2()
    params = gpt2(twin)
    extend = jax.jit(lambda *inputs: GPT.apply({"params": params}, *inputs, method="extend"))
    cache, theirs = GPT.empty(len(TOKENS)), None
    for begin, end in pairwise([0, *range(5, GPT.length + 1)]):
        tokens = TOKENS[:, begin:end]
        got, cache = extend(cache, tokens, begin)
        want = twin(torch.from_numpy(tokens), cache=theirs, use_cache=True)
        theirs = want.cache
        agree(got, want.logits)
    stack = lambda name: torch.stack([getattr(layer, name) for layer in theirs.layers], 1)
    agree([x.swapaxes(2, 3) for x in cache], [stack("keys"), stack("values")])


def test_loss_and_gradients_of_gpt2():
    """Of the next tokens, in float64."""
    with jax.enable_x64(True):
        twin = drawn_gpt2(torch.float64)

        def loss(params):
            logits = GPT.apply({"params": params}, TOKENS[:, :-1], train=True)
            return losses.categorical_cross_entropy(logits, TOKENS[:, 1:]).mean()

        value, gradient = jax.jit(jax.value_and_grad(loss))(gpt2(twin))
        # Their own loss is in float32.
        logits, target = twin(torch.from_numpy(TOKENS)).logits, torch.from_numpy(TOKENS)
        want = torch.nn.functional.cross_entropy(logits[:, :-1].mT, target[:, 1:])
        agree(value, want, 1e-12)
        agree(gradient, gpt2(gradients(twin, want)), 1e-12)
