"""The published sizes of GPT-2 and GPT-3, and how they are trained."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxhist.models.gpt import GPT2, GPT3, VOCABULARY, Size


def recipe(size: Size, length: int, batch: int, rate: float) -> dict[str, Any]:
    """GPT-3, section 2.3 and appendix B: the rate rises over 375 million tokens and falls to a
    tenth over 260 billion; 300 billion are read.

    Not in the paper: the batch has its whole size from the beginning, where it grows from 32,000
    tokens over the first 4 to 12 billion there.
    """
    steps = lambda tokens: round(tokens / (batch * length))
    return {
        **size._asdict(),
        "vocabulary": VOCABULARY,
        "length": length,
        "remat": size.layers > 12,
        "unroll": 1 if size.layers > 12 else size.layers,  # twelve: half the time on a GPU
        "rate": rate,
        "warmup": steps(375e6),
        "decay": steps(260e9),
        "batch": batch,
        "steps": steps(300e9),
        "evaluate_every": 1000,
    }


# GPT-3, table 2.1. Batches of 0.5, 1, 2 and 3.2 million tokens, in windows of 2,048.
# Not in the paper: 3.2 million tokens are 1,562.5 windows; 1,536 can be split over many devices.
RATES = 6e-4, 3e-4, 2.5e-4, 2e-4, 1.6e-4, 1.2e-4, 1e-4, 0.6e-4
BATCHES = 256, 256, 256, 512, 512, 1024, 1024, 1536

# Not in the paper: the rates and the steps of GPT-2, which it does not say, are GPT-3's; and
# WebText was never published, so what is read is C4's part that is most like it.
SIZES = {
    name: recipe(size, 1024, 512, rate) | {"data": "c4/webtextlike"}
    for (name, size), rate in zip(GPT2.items(), RATES, strict=False)
}
# Not in the paper: how broad the bands are. Nor were its texts published; most of them are from
# Common Crawl, as is all of C4.
SIZES |= {
    name: recipe(size, 2048, batch, rate) | {"data": "c4/en", "band": 128}
    for (name, size), rate, batch in zip(GPT3.items(), RATES, BATCHES, strict=True)
}


def adam(rate: float, warmup: int, decay: int) -> optax.GradientTransformation:
    """GPT-3, appendix B: Adam with weight decay, and gradients of norm 1 at most."""
    at = scheduled(rate, warmup, decay)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda step: at(step + 1), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=matrices
        ),
    )


def scheduled(rate: float, warmup: int, decay: int) -> optax.Schedule:
    """The first step is 1. Up to `rate` on a straight line, then to a tenth of it on a cosine."""

    def at(step):
        done = jnp.clip((step - warmup) / max(decay - warmup, 1), 0, 1)
        return rate * jnp.minimum(step / max(warmup, 1), 0.55 + 0.45 * jnp.cos(jnp.pi * done))

    return at


def matrices(params: Any) -> Any:
    """Which ones decay. Not in the paper, which does not say: neither biases nor norms nor
    embeddings do."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "U"), params)
