"""Attention Is All You Need.

Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones, Aidan N. Gomez, Lukasz
Kaiser, Illia Polosukhin, 2017. arXiv:1706.03762.

What changed: the model. No state is carried from word to word: every word looks at all others at
once, with several heads. So all words of a sentence are learned from at the same time, and the way
from one to another is as short for distant ones as for neighbours.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from experiments import (
    attention,
    translating,
    translating_claims,
    translating_pictures,
    translating_tests,
)
from experiments.translating import Translator
from jaxhist import UserError, losses, packed
from jaxhist.algorithm import State, descend
from jaxhist.claims import Claim, Figures
from jaxhist.cli import main
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.transformer import BASE as BASE_SIZE
from jaxhist.models.transformer import BIG as BIG_SIZE
from jaxhist.models.transformer import TENSOR, Positions, Size, Transformer
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Section 5. The sizes are the paper's in `paper` and `big`."""

    data: str = "numbers"  # in words, "recall", or any TFDS set with a text in each language
    source: str = "en"
    target: str = "de"
    vocabulary: tuple[PositiveInt, ...] = (120,)  # sub-words of both languages
    layers: PositiveInt = 2  # of the encoder, and of the decoder
    width: PositiveInt = 128
    hidden: PositiveInt = 256  # units of a feed-forward layer
    heads: PositiveInt = 4
    positions: Positions = "sinusoids"
    dropout: float = 0.1
    smoothing: float = 0.1  # of the labels
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    rate: float = 0.5  # times the paper's
    warmup: NonNegativeInt = 200  # steps
    average: PositiveInt = 1  # states, the last and those before it, averaged for the test
    average_every: PositiveInt = 1  # steps from one of them to the next
    length: PositiveInt = 64  # tokens in a row, which has several sentences
    batch: PositiveInt = 32  # rows
    steps: NonNegativeInt = 600
    evaluate_every: PositiveInt = 150
    beams: PositiveInt = 4  # of the test


# Section 5.1: 25,000 tokens of each language in a batch, packed into 200 rows. Section 6.1: the
# last five checkpoints, ten minutes or 1,500 steps apart, are averaged.
BASE = Config(
    data="wmt14_translate/de-en",
    vocabulary=(37_000,),
    **BASE_SIZE._asdict(),
    rate=1.0,
    warmup=4000,
    average=5,
    average_every=1500,
    length=125,
    batch=200,
    steps=100_000,
    evaluate_every=5000,
)
PRESETS = {
    "small": Config(),
    "multi30k": Config(
        data="multi30k/de-en",
        vocabulary=(4000,),
        layers=3,
        rate=1.0,
        warmup=400,
        average=5,
        average_every=100,
        length=48,
        batch=80,
        steps=3600,
        evaluate_every=300,
    ),
    "paper": BASE,
    # A step takes a second: ten minutes are 600.
    "big": replace(BASE, **BIG_SIZE._asdict(), average=20, average_every=600, steps=300_000),
}


def translator(config: Config, run: Run) -> Translator:
    # Data.
    if len(config.vocabulary) != 1:
        raise UserError("both languages share one vocabulary of sub-words here")
    corpus = translating.corpus(config, run)

    # Model.
    size = Size(config.layers, config.width, config.hidden, config.heads, config.dropout)
    dtype = jnp.dtype(config.dtype)
    model = Transformer(*config.vocabulary, size, config.positions, config.length, dtype)

    def heads(params, batch):
        variables, inputs = {"params": params}, (batch["source"], batch["target"])
        _, seen = model.apply(variables, *inputs, train=False, mutable="intermediates")
        last = seen["intermediates"][f"decoder_{config.layers - 1}"]
        weights = last["source_attention"]["weights"][0][0]  # [H, T, S]
        return {f"head {i + 1}": weights[i] for i in range(config.heads)}

    # Section 6.1: a beam search with a length penalty of 0.6.
    return Translator(model, corpus, lambda state: state.extra, heads, alpha=0.6)


def build(config: Config, run: Run) -> Experiment:
    check(config)
    both = translator(config, run)
    model, data = both.model, both.corpus

    def init_model(key):
        tokens = jnp.zeros((1, config.length), jnp.int32)
        params = model.init(key, tokens, tokens, train=False)["params"]
        return params, params  # and what is tested

    # Loss. Section 5.4: with smoothed labels. The mean over tokens.
    def loss(params, extra, batch, key):
        source, target = batch["source"], batch["target"]
        logits = model.apply({"params": params}, source, target, train=True, rngs={"dropout": key})
        values = losses.smoothed_cross_entropy(logits, target, config.smoothing)
        values = losses.per_real(values, target != packed.PAD)
        return values, (extra, translating.counted(batch, logits))

    # Algorithm. Section 5.3: Adam.
    rate = warmed(config.width, config.warmup)
    optimizer = optax.adam(lambda step: config.rate * rate(step + 1), b1=0.9, b2=0.98, eps=1e-9)
    algorithm = descend(init_model, loss, optimizer)
    if config.average > 1 and config.average * config.average_every > config.steps:
        raise UserError(f"average times average_every must be at most steps {config.steps}")

    def step(state: State, batch, key):
        state, metrics = algorithm.step(state, batch, key)
        return state.replace(extra=averaged(state, config)), metrics

    validate, test = translating_tests.tests(both, run, config.beams)
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=step,
        evaluate=validate,
        test=test,
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        tensor=TENSOR,
    )


def warmed(width: int, warmup: int) -> optax.Schedule:
    """D^-0.5 min(step^-0.5, step warmup^-1.5), equation 3; the first step is 1."""
    return lambda step: width**-0.5 * jnp.minimum(step**-0.5, step * max(warmup, 1) ** -1.5)


def averaged(state: State, config: Config) -> Any:
    """What is tested: the parameters, and from the first of the last `average` states on the mean
    of those that there were."""
    left = config.steps - state.step
    begins = left >= (config.average - 1) * config.average_every
    number = config.average - left // config.average_every
    weight = jnp.where(left % config.average_every == 0, 1 / jnp.maximum(number, 1), 0)
    mean = lambda mean, p: jnp.where(begins, p, mean + weight * (p - mean))
    return jax.tree.map(mean, state.extra, state.params)


# Claims
BRIEF = replace(PRESETS["small"], rate=1.0, warmup=300, **translating_claims.BRIEF)
RECALL = {"data": "recall", "target": "en", "vocabulary": (60,), "length": 64, "batch": 32}
RECALL |= {"steps": 600, "evaluate_every": 150}
ARMS = {
    "sinusoids": BRIEF,
    "learned": replace(BRIEF, positions="learned"),
    "none": replace(BRIEF, positions="none"),
    "one-head": replace(BRIEF, heads=1),
    "recurrent": attention.BRIEF,
    "recall": replace(BRIEF, layers=1, **RECALL),  # as many parameters as the other
    "recall-recurrent": replace(attention.BRIEF, attend=False, **RECALL),
}


def build_any(config: Config | attention.Config, run: Run) -> Experiment:
    """Also of the network that the claims compare with."""
    of = attention.build if isinstance(config, attention.Config) else build
    return of(config, run)


def translator_any(config: Config | attention.Config, run: Run) -> Translator:
    """Also that network."""
    of = attention.translator if isinstance(config, attention.Config) else translator
    return of(config, run)


def arms(*names: str) -> dict[str, Any]:
    return {name: ARMS[name] for name in names}


def cheaper(unit: str):
    """Perplexity: the Transformer's is lower when both have cost the same."""

    def excess(by):
        ours, theirs = translating_claims.at_equal(unit, by["sinusoids"], by["recurrent"])
        return theirs - ours

    return excess


def fall(figures: Figures) -> float:
    """Of the share that is right, from the shortest quarter of the strings to the longest."""
    return figures["shortest"] - figures["longest"]


CLAIMS = {
    "T1": Claim(
        says="Attention alone is at least as good as recurrence with attention, and costs less.",
        paper="BLEU 28.4; the best recurrent ensemble 26.30, at five times the FLOPs (table 2)",
        arms=arms("sinusoids", "recurrent"),
        figures=translating_claims.costs,
        inequalities={
            "perplexity at equal seconds: lower": cheaper("s"),
            "perplexity at equal FLOPs: lower": cheaper("TFLOP"),
            "steps/s: more": lambda by: by["sinusoids"]["steps/s"] - by["recurrent"]["steps/s"],
        },
        picture=translating_pictures.draw_costs,
    ),
    "T2": Claim(
        says="It must know the positions, and sinusoids do as well as learned vectors.",
        paper="BLEU 25.8 and 25.7, perplexity 4.92 both (table 3, row E)",
        arms=arms("sinusoids", "learned", "none"),
        figures=translating_claims.last,
        inequalities={
            "perplexity: none > 1.1 x sinusoids": lambda by: (
                by["none"]["perplexity"] - 1.1 * by["sinusoids"]["perplexity"]
            ),
            "perplexity: learned within 5 % of sinusoids": lambda by: (
                0.05 - abs(by["learned"]["perplexity"] / by["sinusoids"]["perplexity"] - 1)
            ),
        },
        picture=translating_pictures.draw,
    ),
    "T4": Claim(
        says="Several heads are better than one.",
        paper="BLEU 25.8 with 8 heads, 24.9 with one; perplexity 4.92, 5.29 (table 3, row A)",
        arms=arms("sinusoids", "one-head"),
        figures=translating_claims.last,
        inequalities={
            "perplexity: 4 heads < 1": lambda by: (
                by["one-head"]["perplexity"] - by["sinusoids"]["perplexity"]
            )
        },
        picture=translating_pictures.draw,
    ),
    "T6": Claim(
        says="What is far away is as near as a neighbour; in a recurrent network it is not.",
        paper="the longest path between two words: 1 layer, and n (table 1)",
        arms=arms("recall", "recall-recurrent"),
        figures=translating_claims.shortest_and_longest,
        inequalities={
            "the Transformer falls by less than 5 points": lambda by: 0.05 - fall(by["recall"]),
            "the recurrent network by more": lambda by: fall(by["recall-recurrent"]) - 0.05,
        },
        picture=translating_pictures.draw,
    ),
}


if __name__ == "__main__":
    main(build_any, PRESETS, CLAIMS, {"translate": translating.command(translator_any)})
