"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding.

Jacob Devlin, Ming-Wei Chang, Kenton Lee, Kristina Toutanova, 2018. arXiv:1810.04805.

What changed: the data. Text without labels becomes a task: guess words that are hidden in it, from
those on both sides. What an encoder learns from that it brings along to tasks with few labels, for
which all of it is trained a little further.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp

from experiments import bert_claims, bert_tuning, bert_words
from jaxhist import devices, losses, starting
from jaxhist.algorithm import descend
from jaxhist.claims import Claim
from jaxhist.cli import main
from jaxhist.data import documents, masked
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models import bert
from jaxhist.models.bert import TENSOR, PreTraining
from jaxhist.packed import PAD
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Section 3 and appendix A.2. The sizes are the paper's in `base` and `large`."""

    data: str = "python"  # its documentation; or any TFDS set with a `text`, or texts and labels
    learn: Literal["words", "labels"] = "words"
    start: str = ""  # a run in the same directory as this one, whose network it begins with
    words: str = ""  # a vocab.txt, or a run likewise, whose word pieces it has; else it makes them
    vocabulary: PositiveInt = 5000  # word pieces
    cased: bool = False  # capital letters and accents matter
    left_to_right: bool = False  # each word sees those before it; the next one is learned
    pairs: bool = True  # learn whether segments follow each other
    examples: NonNegativeInt = 0  # whose labels are known, 0 for all
    layers: PositiveInt = 2
    width: PositiveInt = 128
    heads: PositiveInt = 2
    dropout: float = 0.0
    deviation: float = 0.05  # of the first weights: at a width of 128 what 0.02 is at one of 768
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    corrected: bool = False  # Adam's moments
    rate: float = 1e-3
    warmup: NonNegativeInt = 200  # steps
    decay: NonNegativeInt = 0  # steps until the rate is 0, those of `start` too; 0: until the last
    length: PositiveInt = 32  # tokens in a row
    batch: PositiveInt = 64  # rows
    steps: NonNegativeInt = 2000
    evaluate_every: PositiveInt = 250


# Not in the paper: what is small begins wider, and has no dropout while there is text that it has
# not seen; and `english` has words alone, which it learns sooner so.
SMALL = Config()
ENGLISH = Config(data="english_documents", layers=4, pairs=False, steps=3000, evaluate_every=500)
# Three epochs of the 6,920 sentences of sst_binary.
TUNED = {"learn": "labels", "warmup": 65, "steps": 650, "evaluate_every": 130, "batch": 32}
SST = {**TUNED, "data": "sst_binary", "length": 64, "dropout": 0.1, "rate": 3e-4}
# Not in the paper: of the two corpora Wikipedia alone, and the word pieces made from it, if --words
# names no vocab.txt. Appendix A.2: 900,000 steps with 128 tokens in a row, then 100,000 with 512.
BASE = Config(
    data="wikipedia/20230601.en",
    vocabulary=30_522,
    layers=bert.BASE.layers,
    width=bert.BASE.width,
    heads=bert.BASE.heads,
    dropout=bert.BASE.dropout,
    deviation=bert.BASE.deviation,
    rate=1e-4,
    warmup=10_000,
    decay=1_000_000,
    length=128,
    batch=256,
    steps=900_000,
    evaluate_every=10_000,
)
LARGE = replace(BASE, layers=bert.LARGE.layers, width=bert.LARGE.width, heads=bert.LARGE.heads)
LONG = {"length": 512, "steps": 100_000}
GLUE = {**TUNED, "data": "glue/sst2", "rate": 2e-5, "warmup": 631, "steps": 6315, "decay": 0}
PRESETS = {
    "small": SMALL,
    "small-sst": replace(SMALL, start="bert-small", **SST),
    "english": ENGLISH,
    "sst": replace(ENGLISH, start="bert-english", **SST),
    "cola": replace(ENGLISH, start="bert-english", **{**SST, "data": "glue/cola", "steps": 720}),
    "base": BASE,
    "base-512": replace(BASE, start="bert-base", **LONG),
    "base-sst": replace(BASE, start="bert-base-512", **{**GLUE, "evaluate_every": 2105}),
    "large": LARGE,
    "large-512": replace(LARGE, start="bert-large", **LONG),
}


def build(config: Config, run: Run) -> Experiment:
    check(config)
    if config.learn == "labels":
        return bert_tuning.experiment(config, run, build)

    # Data.
    texts, mesh = documents.named(config.data), devices.mesh(run.devices, run.mesh)
    sample = lambda: documents.first(texts("train"), documents.SAMPLE)
    data = masked.corpus(
        texts,
        bert_tuning.vocabulary(config, run, sample),
        config.vocabulary,
        config.batch,
        config.length,
        config.pairs,
        config.left_to_right,
        run.seed,
        mesh,
    )

    # Model.
    model = PreTraining(**bert_tuning.network(config))

    def init_model(key):
        tokens = jnp.zeros((1, config.length), jnp.int32)
        return model.init(key, tokens, tokens, tokens, train=False)["params"], ()

    # Loss. Appendix A.2: the sum of the mean over words and the mean over rows.
    def loss(params, extra, batch, key):
        found = bert_words.compare(model, params, batch, train=True, rngs={"dropout": key})
        words = losses.per_real(found["words"], found["real"])  # [B, P]
        metrics = {
            "loss words": words.mean(),
            "accuracy words": losses.per_real(1.0 * found["right"], found["real"]).mean(),
            "count/tokens": jnp.sum(batch["tokens"] != PAD),
        }
        if not config.pairs:
            return words, (extra, metrics)
        metrics |= {
            "loss follows": found["follows"].mean(),
            "accuracy follows": found["follows right"].mean(),
        }
        return words + found["follows"][:, None], (extra, metrics)

    # Algorithm. What goes on from another run has also its moments, and its place in the schedule.
    def algorithm(before=0):
        return descend(init_model, loss, bert_tuning.optimizer(config, before))

    def begin(state):
        moved = lambda state: (state.params, state.opt_state)
        params, opt_state = starting.learned(build, config, run, moved, moved(state))
        return state.replace(params=params, opt_state=opt_state)

    def step(state, batch, key):
        before = state.opt_state[-1].count - state.step if config.start else 0
        return algorithm(before).step(state, batch, key)

    test = bert_words.tests(model, data, config, run)
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm().init,
        begin=begin,
        step=step,
        evaluate=lambda state: test(state, "validation"),
        test=lambda state: test(state, "test"),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        tensor=TENSOR,
    )


# Claims. A laptop's scale. Hidden words are learned slowly: two layers come to a perplexity of 119
# in 3,000 steps (seeds 0 and 1), and are at 65 after 6,000 of 12,000 (seed 100).
BOTH = replace(ENGLISH, layers=2, steps=6000)
# How many labels, and the steps to learn them in: the same with and without pre-training.
LABELS = {100: 130, 1000: 260, 0: 650}
SEED = "-seed{seed}"


def labels(config: Config, count: int = 0, **origin) -> Config:
    steps = LABELS[count]
    few = {"examples": count, "steps": steps, "warmup": steps // 10, "evaluate_every": steps // 2}
    return replace(config, **{**SST, **few, **origin})


LEFT = replace(BOTH, left_to_right=True)
DIRECTIONS = {
    "both": BOTH,
    "left": LEFT,
    "both tuned": labels(BOTH, start="both" + SEED),
    "left tuned": labels(LEFT, start="left" + SEED),
}
BEGINS = {"pre-trained": {"start": "english" + SEED}, "scratch": {"words": "english" + SEED}}
FEW = {"english": ENGLISH} | {
    f"{kind} {count or 'all'}": labels(ENGLISH, count, **begins)
    for count in LABELS
    for kind, begins in BEGINS.items()
}
TINY = replace(BOTH, layers=1, width=64, heads=1)
SMALLER = replace(BOTH, width=64, heads=1)
SIZES = {
    "tiny": TINY,
    "smaller": SMALLER,
    "both": BOTH,
    "tiny tuned": labels(TINY, start="tiny" + SEED),
    "smaller tuned": labels(SMALLER, start="smaller" + SEED),
    "both tuned": DIRECTIONS["both tuned"],
}

gain, no_worse = bert_claims.gain, bert_claims.no_worse
CLAIMS = {
    "E1": Claim(
        says="Words are guessed better from both sides, and what is learned so is worth more.",
        paper="both directions and left to right: SQuAD F1 87.9 and 77.8 %, MRPC 86.5 and 77.5, "
        "SST-2 92.6 and 92.1 (table 5, without next sentences)",
        arms=DIRECTIONS,
        figures=bert_claims.figures,
        inequalities={
            "one hidden word: both sides > left + 3 points": lambda by: (
                by["both"]["alone"] - by["left"]["alone"] - 3
            ),
            "SST-2: both sides >= left": lambda by: (
                by["both tuned"]["accuracy"] - by["left tuned"]["accuracy"]
            ),
        },
        picture=bert_claims.draw_directions,
        log_every=20,
    ),
    "E2": Claim(
        says="What is learned from text alone is worth labels, most where there are few.",
        paper="no figure without pre-training; of GPT's, the average of the tasks falls from 74.7 "
        "to 59.9 (Radford et al. 2018, table 5)",
        arms=FEW,
        figures=bert_claims.figures,
        inequalities={
            "100 labels: pre-trained > from scratch + 1 point": lambda by: gain(by, "100") - 1,
            "1,000 labels: pre-trained > from scratch + 1 point": lambda by: gain(by, "1000") - 1,
            "the gain: with 100 labels > with all": lambda by: gain(by, "100") - gain(by, "all"),
        },
        picture=bert_claims.draw_labels,
        log_every=20,
    ),
    "E3": Claim(
        says="A larger network is better, also at a small task.",
        paper="3 layers of 768: perplexity 5.84, SST-2 88.4 %; 6: 4.68, 91.3; 12: 3.99, 92.9; 24 "
        "of 1024: 3.23, 93.7 (table 6)",
        arms=SIZES,
        figures=bert_claims.figures,
        inequalities={
            "perplexity: 2x64 < 1x64": lambda by: (
                by["tiny"]["perplexity"] - by["smaller"]["perplexity"]
            ),
            "perplexity: 2x128 < 2x64": lambda by: (
                by["smaller"]["perplexity"] - by["both"]["perplexity"]
            ),
            "SST-2: 2x64 >= 1x64 - 1 standard error": lambda by: no_worse(
                by["smaller tuned"], by["tiny tuned"]
            ),
            "SST-2: 2x128 >= 2x64 - 1 standard error": lambda by: no_worse(
                by["both tuned"], by["smaller tuned"]
            ),
        },
        picture=bert_claims.draw_sizes,
        log_every=20,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS, {"fill": bert_words.fill})
