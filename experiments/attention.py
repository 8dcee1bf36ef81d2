"""Neural Machine Translation by Jointly Learning to Align and Translate.

Dzmitry Bahdanau, Kyunghyun Cho, Yoshua Bengio, 2014. arXiv:1409.0473. And what it is compared with
there, the network of Cho et al., 2014, arXiv:1406.1078.

What changed: the model. For every word that it writes, the decoder looks at the whole source anew,
most at the words that it finds belong there. A sentence need not fit into a vector of fixed size,
so long ones are translated as well as short ones.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax.numpy as jnp
import optax

from experiments import translating, translating_claims, translating_pictures, translating_tests
from experiments.translating import Translator
from jaxhist import losses, packed
from jaxhist.algorithm import descend
from jaxhist.claims import Claim
from jaxhist.cli import main
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.attention import RNNsearch
from jaxhist.models.seq2seq import RNNencdec
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Section 4. Not in the paper: sub-words, Adam, dropout, and so the sizes, but for `paper`."""

    data: str = "numbers"  # in words, "recall", or any TFDS set with a text in each language
    source: str = "en"
    target: str = "de"
    vocabulary: tuple[PositiveInt, ...] = (120,)  # sub-words of both languages, or words of each
    attend: bool = True  # RNNsearch; else RNNencdec, which has a fixed vector
    n: PositiveInt = 128  # units of a layer
    m: PositiveInt = 64  # of an embedding
    l: PositiveInt = 64  # noqa: E741, pairs of units of the output
    dropout: float = 0.0
    optimizer: Literal["adam", "adadelta"] = "adam"
    rate: float = 0.006
    warmup: NonNegativeInt = 100  # steps of Adam until the rate is reached
    length: PositiveInt = 64  # tokens in a row, which has several sentences
    batch: PositiveInt = 32  # rows
    steps: NonNegativeInt = 800
    evaluate_every: PositiveInt = 200
    beams: PositiveInt = 4  # of the test


PRESETS = {
    "small": Config(),
    "multi30k": Config(
        data="multi30k/de-en",
        vocabulary=(4000,),
        n=256,
        m=128,
        l=128,
        dropout=0.3,
        rate=0.002,
        length=48,
        batch=80,
        steps=3000,
        evaluate_every=300,
    ),
    # RNNsearch-50 of table 2: 288,000 updates with 80 sentences of at most 50 words. Not in the
    # paper: they are packed into rows, 40 of which have about as many; all pairs of WMT'14 that
    # fit, not a selection.
    "paper": Config(
        data="wmt14_translate/fr-en",
        target="fr",
        vocabulary=(30_000, 30_000),
        n=1000,
        m=620,
        l=500,
        optimizer="adadelta",
        rate=1.0,
        length=51,
        batch=40,
        steps=288_000,
        evaluate_every=10_000,
        beams=12,
    ),
}


def translator(config: Config, run: Run) -> Translator:
    # Data.
    corpus = translating.corpus(config, run)

    # Model.
    model = RNNsearch if config.attend else RNNencdec
    sizes = translating.sizes(config.vocabulary)
    model = model(sizes, config.n, config.m, config.l, config.dropout)

    def alignment(params, batch):
        variables, inputs = {"params": params}, (batch["source"], batch["target"])
        _, seen = model.apply(variables, *inputs, train=False, mutable="intermediates")
        return {"alignment": seen["intermediates"]["alignment"][0][0]}

    params = lambda state: state.params
    return Translator(model, corpus, params, alignment if config.attend else None)


def build(config: Config, run: Run) -> Experiment:
    check(config)
    both = translator(config, run)
    model, data = both.model, both.corpus

    def init_model(key):
        tokens = jnp.zeros((1, config.length), jnp.int32)
        return model.init(key, tokens, tokens, train=False)["params"], ()

    # Loss. -log P(target | source): the mean over sentences.
    def loss(params, extra, batch, key):
        source, target = batch["source"], batch["target"]
        logits = model.apply({"params": params}, source, target, train=True, rngs={"dropout": key})
        values = losses.categorical_cross_entropy(logits, target)
        sentences = jnp.sum(target == packed.EOS)
        values = losses.per_real(values, target != packed.PAD, sentences)
        return values, (extra, translating.counted(batch, logits))

    # Algorithm. Appendix B.2: Adadelta, and gradients of a norm of 1 at most.
    if config.optimizer == "adadelta":
        optimizer = optax.adadelta(config.rate, rho=0.95, eps=1e-6)
    else:
        warm = lambda step: jnp.minimum((step + 1) / max(config.warmup, 1), 1.0)
        optimizer = optax.adam(lambda step: config.rate * warm(step))
    algorithm = descend(init_model, loss, optax.chain(optax.clip_by_global_norm(1.0), optimizer))

    validate, test = translating_tests.tests(both, run, config.beams)
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=algorithm.step,
        evaluate=validate,
        test=test,
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score=data.score,
    )


# Claims
BRIEF = replace(PRESETS["small"], rate=0.003, n=128, m=128, l=64, **translating_claims.BRIEF)
# After the 600 steps of the others it has not begun to look where it should, in most seeds.
LONGER = replace(BRIEF, steps=1500, evaluate_every=375)


def gap(metric: str, words: str = ""):
    """By how much looking is better than the fixed vector, for sources of so many words."""
    sign = {"BLEU": 1, "perplexity": -1}[metric]
    name = f"{metric} {words}".strip()
    return lambda by: sign * (by["search"][name] - by["encdec"][name])


def wider(metric: str):
    return lambda by: gap(metric, "14 and more")(by) - gap(metric, "up to 9")(by)


CLAIMS = {
    "B1": Claim(
        says="A decoder that looks at the source beats a fixed vector, most at long sentences.",
        paper="BLEU 26.75 against 17.82 (table 1), and figure 2",
        arms={"search": LONGER, "encdec": replace(LONGER, attend=False)},
        figures=partial(translating_claims.by_length, translator),
        inequalities={
            "BLEU: search > encdec": gap("BLEU"),
            "BLEU: the gap is wider at 14 words and more than up to 9": wider("BLEU"),
            "perplexity: search < encdec": gap("perplexity"),
            "perplexity: the gap is wider at 14 words and more": wider("perplexity"),
        },
        picture=translating_pictures.draw,
    ),
    "B2": Claim(
        says="What the decoder looks at are the words that belong there.",
        paper="figure 3, four sentences",
        arms={"search": LONGER},
        figures=partial(translating_claims.alignment, translator),
        inequalities={
            "the largest weight > 2 / S": lambda by: by["search"]["largest weight x S / 2"] - 1,
            "correlation of the places > 0.5": lambda by: by["search"]["correlation"] - 0.5,
        },
        picture=translating_pictures.draw,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS, {"translate": translating.command(translator)})
