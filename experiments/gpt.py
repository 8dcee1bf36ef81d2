"""Language Models are Unsupervised Multitask Learners, and Language Models are Few-Shot Learners.

Alec Radford, Jeffrey Wu, Rewon Child, David Luan, Dario Amodei, Ilya Sutskever, 2019. Tom B. Brown,
Benjamin Mann, Nick Ryder, Melanie Subbiah and 27 others, 2020. arXiv:2005.14165. And how the loss
falls with size: Jared Kaplan and nine others, Scaling Laws for Neural Language Models, 2020.
arXiv:2001.08361. And what it brings along to labels: Radford, Karthik Narasimhan, Tim Salimans,
Sutskever, Improving Language Understanding by Generative Pre-Training, 2018.

What changed: the data, and how much of everything. A Transformer's decoder predicts what comes next
in any text. The larger it is and the more it reads, the lower its loss, as a power law; and a task
can be put to it as a text, with a few examples, and no training at all.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

from experiments import gpt_claims, gpt_recipe, gpt_text, gpt_tuning
from experiments.gpt_text import LanguageModel
from jaxhist import UserError, devices, losses
from jaxhist.algorithm import State, descend
from jaxhist.claims import Claim, Figures
from jaxhist.cli import main
from jaxhist.data import language
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.gpt import TENSOR, Norm
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Not in the paper: sizes for a laptop."""

    data: str = "python"  # its documentation, "letters", or any TFDS set with a text, or labels
    learn: Literal["text", "labels"] = "text"
    start: str = ""  # of labels: a run in the same directory as this one, to begin with its network
    words: str = ""  # of labels: a run likewise, whose vocabulary it has; else it makes one
    examples: NonNegativeInt = 0  # whose labels are known, 0 for all
    unit: language.Unit = "bytes"  # of which tokens are made
    vocabulary: PositiveInt = 2000  # tokens at most
    share: float = 1.0  # of the training text, from its beginning
    network: Literal["transformer", "lstm"] = "transformer"  # the latter: layers and width alone
    layers: PositiveInt = 4
    width: PositiveInt = 128
    heads: PositiveInt = 4
    length: PositiveInt = 64  # tokens in a window
    norm: Norm = "pre"  # or that of GPT-1
    band: NonNegativeInt = 0  # every other layer looks at so many tokens; 0: at all
    dropout: float = 0.0
    remat: bool = False  # layers are computed again for the gradient: less memory
    unroll: PositiveInt = 1  # layers in the body of the loop over them
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    rate: float = 0.003
    warmup: NonNegativeInt = 50  # steps
    decay: NonNegativeInt = 1000  # steps to a tenth of the rate (labels: to 0); 0: until the last
    batch: PositiveInt = 32  # windows
    parts: PositiveInt = 1  # of a batch, taken one after the other: less memory
    steps: NonNegativeInt = 1000
    evaluate_every: PositiveInt = 250


SHAKESPEARE = Config(
    data="tiny_shakespeare",
    unit="characters",
    vocabulary=68,
    layers=6,
    width=192,
    heads=6,
    length=128,
    dropout=0.1,
    rate=0.002,
    warmup=100,
    decay=3000,
    steps=3000,
)


ENGLISH = Config(data="english_documents", dropout=0.1, decay=3000, steps=3000)
# Three epochs of the 6,920 sentences of sst_binary.
SST = {
    "learn": "labels",
    "data": "sst_binary",
    "dropout": 0.1,
    "rate": 3e-4,
    "warmup": 65,
    "decay": 650,
    "steps": 650,
    "evaluate_every": 130,
}

PRESETS = {
    "small": Config(),
    "english": ENGLISH,
    "sst": replace(ENGLISH, start="gpt-english", **SST),
    "shakespeare": SHAKESPEARE,
    **{name: Config(**fields) for name, fields in gpt_recipe.SIZES.items()},
}


def language_model(config: Config, run: Run) -> LanguageModel:
    # Data.
    corpus = language.named(
        config.data,
        config.unit,
        config.vocabulary,
        config.batch,
        config.length,
        config.share,
        run.seed,
        run.workdir,
        devices.mesh(run.devices, run.mesh),
    )

    # Model.
    return LanguageModel(gpt_tuning.network(config), corpus)


def build(config: Config, run: Run) -> Experiment:
    check(config)
    if config.learn == "labels":
        if config.parts != 1:
            raise UserError("labels are learned from whole batches; leave --parts away")
        return gpt_tuning.experiment(config, run, build)
    if config.start or config.words or config.examples:
        raise UserError("a start, words and examples are for labels: add --learn labels")
    both = language_model(config, run)
    model, data = both

    def init_model(key):
        return model.init(key, jnp.zeros((1, 1), jnp.int32), train=False)["params"], ()

    # Loss. The mean over all tokens but the first, those of other documents among them.
    def loss(params, extra, batch, key):
        tokens, target = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits = model.apply({"params": params}, tokens, train=True, rngs={"dropout": key})
        values = losses.categorical_cross_entropy(logits, target)
        metrics = {"accuracy": jnp.mean(logits.argmax(-1) == target), "count/tokens": target.size}
        return values, (extra, metrics)

    # Algorithm. Adam, as GPT-3 has it.
    optimizer = gpt_recipe.adam(config.rate, config.warmup, config.decay or config.steps)
    if config.parts != 1:
        devices.check_divides(devices.mesh(run.devices, run.mesh), data.batch, config.parts)
    algorithm = descend(init_model, loss, optimizer, config.parts)

    scores = gpt_text.measuring(both, run, config.batch // config.parts)
    answers = gpt_text.answering(both, run)
    asked = config.data == "letters"  # whose tasks are learned from the context
    room = 3 * max(gpt_text.SHOTS) + 2  # tokens of so many pairs, each a line, and of a question
    if asked and config.length < room:
        raise UserError(f"length must be at least {room} for letters, not {config.length}")

    def test(state: State):
        return scores(state, "test") | (answers(state) if asked else {})

    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: scores(state, "validation"),
        test=test,
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        tensor=TENSOR,
    )


# Claims
BRIEF = Config(
    data="tiny_shakespeare",
    unit="characters",
    vocabulary=68,
    rate=0.003,
    warmup=50,
    decay=1000,
    steps=1000,  # of 2,048 characters
    evaluate_every=100,
)
# Layers, width; a head has 16 numbers.
LADDER = {"6k": (2, 16), "25k": (2, 32), "83k": (3, 48), "197k": (4, 64), "442k": (4, 96)}
HIGH = 0.01  # the other rate that every size is trained with


def sized(config: Config, layers: int, width: int) -> Config:
    return replace(config, layers=layers, width=width, heads=width // 16)


SIZES = {name: sized(BRIEF, *size) for name, size in LADDER.items()}
SIZES |= {f"{name}, rate {HIGH}": replace(SIZES[name], rate=HIGH) for name in LADDER}
SHARES = {f"{share:.0%}": replace(SIZES["197k"], share=share) for share in (0.03, 0.1, 0.3, 1.0)}
LETTERS = replace(BRIEF, data="letters", vocabulary=18, evaluate_every=250)
LEARNERS = {
    f"letters {name}": sized(LETTERS, *size)
    for name, size in {"3k": (1, 16), "25k": (2, 32), "98k": (2, 64), "393k": (2, 128)}.items()
}
DEEP = replace(BRIEF, layers=12, width=64, heads=4, warmup=0, decay=300, steps=300)
# GPT-1's LSTM has one layer too; here it has as many parameters as the Transformer.
READER = Config(data="english_documents", decay=2000, steps=2000)
READERS = {"transformer": READER, "lstm": replace(READER, network="lstm", layers=1, width=256)}
# Four epochs of 1,000 sentences. The rate is better than 1e-4 and 3e-4 after pre-training, and than
# 3e-4 and 3e-3 from scratch (seed 100).
FEW = {**SST, "examples": 1000, "warmup": 13, "decay": 130, "steps": 130, "evaluate_every": 65}
FEW |= {"rate": 1e-3}
TRANSFER = {
    **READERS,
    "tuned": replace(READERS["transformer"], start="transformer-seed{seed}", **FEW),
    "lstm tuned": replace(READERS["lstm"], start="lstm-seed{seed}", **FEW),
    "scratch": replace(READERS["transformer"], words="transformer-seed{seed}", **FEW),
}


def over_sizes(by: dict[str, Figures]) -> list[float]:
    """The loss of each size with the better rate, from small to large."""
    return [min(by[name]["loss"], by[f"{name}, rate {HIGH}"]["loss"]) for name in LADDER]


def over_shares(by: dict[str, Figures]) -> list[float]:
    return [by[share]["loss"] for share in SHARES]


def falls(values: list[float]) -> float:
    """The least step down from one to the next."""
    return float(-np.diff(values).max())


def size_law(by: dict[str, Figures]) -> gpt_claims.Law:
    parameters = [gpt_claims.parameters(SIZES[name]) for name in LADDER]
    return gpt_claims.fit(parameters, over_sizes(by))


def share_law(by: dict[str, Figures]) -> gpt_claims.Law:
    return gpt_claims.fit([config.share for config in SHARES.values()], over_shares(by))


def gain(by: dict[str, Figures], name: str) -> float:
    """Of eight demonstrations."""
    accuracy = by[f"letters {name}"]
    return accuracy["accuracy 8-shot"] - accuracy["accuracy 0-shot"]


CLAIMS = {
    "P1": Claim(
        says="Loss falls as a power of the number of parameters.",
        paper="exponent 0.076, over six orders of magnitude (Kaplan et al., figure 1)",
        arms=SIZES,
        figures=gpt_claims.last,
        inequalities={
            "exponent > 0.03": lambda by: size_law(by).exponent - 0.03,
            "exponent < 0.25": lambda by: 0.25 - size_law(by).exponent,
            "R^2 of the law > 0.95": lambda by: size_law(by).r2 - 0.95,
            "each size is better than the one before": lambda by: falls(over_sizes(by)),
        },
        picture=gpt_claims.draw_sizes,
        log_every=20,
    ),
    "P2": Claim(
        says="Loss falls as a power of the amount of text.",
        paper="exponent 0.095, stopped early (Kaplan et al., figure 1)",
        arms=SHARES,
        figures=gpt_claims.lowest,
        inequalities={
            "more text is better": lambda by: falls(over_shares(by)),
            "R^2 of the law > 0.95": lambda by: share_law(by).r2 - 0.95,
        },
        picture=gpt_claims.draw_data,
        log_every=20,
    ),
    "P4": Claim(
        says="What is learned from text helps to learn labels.",
        paper="the average of eight tasks: 74.7, without pre-training 59.9, of an LSTM 69.1; "
        "SST-2: 91.3, 84.0 and 90.5 % (GPT-1, table 5)",
        arms=TRANSFER,
        figures=gpt_tuning.figures,
        inequalities={
            "1,000 labels: pre-trained > from scratch + 1 point": lambda by: (
                by["tuned"]["accuracy"] - by["scratch"]["accuracy"] - 1
            ),
        },
        picture=gpt_tuning.draw,
        log_every=20,
    ),
    "P6": Claim(
        says="A task is learned from examples in the context, and more so by larger networks.",
        paper="the lines for few, one and no examples part as size grows (GPT-3, figure 1.2); "
        "sums of two digits, 175 billion parameters: 76.9 % with none, 99.6 with one, 100 with few",
        arms=LEARNERS,
        figures=gpt_claims.shots,
        inequalities={
            "393k: 8 demonstrations gain more than 10 points": lambda by: gain(by, "393k") - 0.1,
            "393k gains more than 3k": lambda by: gain(by, "393k") - gain(by, "3k"),
        },
        picture=gpt_claims.draw_shots,
        log_every=20,
    ),
    "P7": Claim(
        says="Norms before the sublayers and scaled beginnings train deep networks.",
        paper="a change of the model, without figures (GPT-2, section 2.3)",
        arms={"GPT-2": DEEP, "GPT-1": replace(DEEP, norm="post")},
        figures=gpt_claims.last,
        inequalities={"loss: GPT-2 < GPT-1": lambda by: by["GPT-1"]["loss"] - by["GPT-2"]["loss"]},
        picture=gpt_claims.draw_norms,
        log_every=5,
        diverged={"loss": np.inf},
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS, {"complete": gpt_text.command(language_model)})
