"""What the claims of the experiments of translation measure."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import translating
from experiments.translating import Translator
from jaxhist import devices, evaluate, packed
from jaxhist.algorithm import Batch, State
from jaxhist.claims import Figures, Trained
from jaxhist.data import text
from jaxhist.train import Run

# A laptop's scale: networks and times for Multi30k.
BRIEF = {
    "data": "multi30k/de-en",
    "vocabulary": (3000,),
    "dropout": 0.1,
    "length": 48,
    "batch": 40,
    "steps": 600,
    "evaluate_every": 150,
}
LENGTHS = {"up to 9": (1, 9), "10 to 13": (10, 13), "14 and more": (14, 1000)}  # words

TranslatorOf = Callable[[Any, Run], Translator]


def evaluations(trained: Trained) -> list[dict]:
    return [line for line in trained.lines if line.get("phase") == "evaluate"]


def last(trained: Trained) -> Figures:
    """Of the validation data, at the end of the training."""
    line = evaluations(trained)[-1]
    return {name: value for name, value in line.items() if name not in ("step", "phase")}


def by_quarter(line: dict) -> dict[str, float]:
    """How good translations are, by the words of the source, the shortest quarter first. From the
    test line of a log, whose names are such as "lengths 10 to 12"."""
    names = [name for name in line if name.startswith("lengths ")]
    names.sort(key=lambda name: int(name.split()[1]))
    return {name.removeprefix("lengths "): line[name] for name in names}


def shortest_and_longest(trained: Trained) -> Figures:
    """How good the translations of the shortest quarter of the test data are, and of the
    longest."""
    values = list(by_quarter(trained.lines[-1]).values())
    return {"shortest": values[0], "longest": values[-1]}


def single(translator: Translator) -> list[Batch]:
    """The test data in batches of fifty rows that have one sentence each."""
    sources, targets = translator.corpus.pairs("test")
    target = text.padded(text.encode(translator.corpus.vocabularies()[1], targets))
    source = text.padded(translator.corpus.encode(sources))
    return [
        {"source": source[i : i + 50], "target": target[i : i + 50]}
        for i in range(0, len(source), 50)
    ]


def by_length(translator_of: TranslatorOf, trained: Trained) -> Figures:
    """BLEU of greedy translations of the test data, and the perplexity of their tokens: of all
    sentences, and by the words of the source."""
    translator = translator_of(trained.config, trained.run)
    mesh, state = devices.mesh(trained.run.devices), trained.state()
    found = evaluate.outputs(translating.measure(translator), mesh, 50)(state, single(translator))
    sources, references = translator.corpus.pairs("test")
    greedy = translating.translate_with(translator, trained.run, beams=1)
    translations = greedy(state, sources).texts
    words = np.array([len(source.split()) for source in sources])
    figures = {}
    for name, (least, most) in {"": (1, 1000), **LENGTHS}.items():
        (chosen,) = np.nonzero((least <= words) & (words <= most))
        of = lambda texts, chosen=chosen: [texts[i] for i in chosen]
        score = evaluate.bleu(of(translations), of(references)).score
        figures[f"BLEU {name}".strip()] = score
        mean = found["loss"][chosen].sum() / found["tokens"][chosen].sum()
        figures[f"perplexity {name}".strip()] = float(np.exp(mean))
    return figures


def beams(translator_of: TranslatorOf, widths: tuple[int, ...], trained: Trained) -> Figures:
    """BLEU of the test data and the mean log-probability of what beams of these widths find."""
    translator, state = translator_of(trained.config, trained.run), trained.state()
    sources, references = translator.corpus.pairs("test")
    figures = {}
    for width in widths:
        search = translating.translate_with(translator, trained.run, width)
        found = search(state, sources)
        figures[f"BLEU {width}"] = evaluate.bleu(found.texts, references).score
        figures[f"log P {width}"] = float(found.log_probability.mean())
    return figures


def alignment(translator_of: TranslatorOf, trained: Trained) -> Figures:
    """Of the words that are written for the test data, as they are in the references: the largest
    weight, times half of the tokens of the source; and how the place of that weight, as a share
    of the source, goes with the place in the target."""
    translator, state = translator_of(trained.config, trained.run), trained.state()
    model = translator.model

    def largest(state: State, batch: Batch):
        variables = {"params": translator.params(state)}
        inputs = batch["source"], batch["target"]
        _, seen = model.apply(variables, *inputs, train=False, mutable="intermediates")
        (weights,) = seen["intermediates"]["alignment"]  # [B, T, S]
        return weights.max(-1), weights.argmax(-1)

    batches = single(translator)
    weight, place = evaluate.outputs(largest, devices.mesh(trained.run.devices), 50)(state, batches)
    source, target = (np.concatenate([batch[name] for batch in batches]) for name in batches[0])
    S = (source != packed.PAD).sum(1, keepdims=True)
    T = (target != packed.PAD).sum(1, keepdims=True)
    real = target != packed.PAD
    at = np.broadcast_to(np.arange(target.shape[1]), target.shape)
    here, there = (at / T)[real], (place / S)[real]
    return {
        "largest weight x S / 2": float((weight * S / 2)[real].mean()),
        # 0 where it never moves.
        "correlation": float(np.corrcoef(here, there)[0, 1]) if np.ptp(there) > 0 else 0.0,
    }


def seconds(lines: list[dict], step: int) -> float:
    """Of training, evaluations not counted, until a step."""
    trained = [line for line in lines if line.get("phase") == "train" and line["step"] <= step]
    return step * float(np.mean([line["speed"]["seconds/step"] for line in trained]))


def teraflops(lines: list[dict], step: int) -> float:
    """Of training, until a step."""
    speed = next(line["speed"] for line in lines if line.get("phase") == "train")
    return step * speed["FLOP/s"] * speed["seconds/step"] / 1e12


COSTS = {"s": seconds, "TFLOP": teraflops}


def costs(trained: Trained) -> Figures:
    """The perplexity at each evaluation, and what it took to get there."""
    figures = {}
    for line in evaluations(trained):
        step = line["step"]
        figures |= {f"{unit} {step}": cost(trained.lines, step) for unit, cost in COSTS.items()}
        figures[f"perplexity {step}"] = line["perplexity"]
    return {**figures, "steps/s": step / seconds(trained.lines, step)}


def at_equal(unit: str, one: Figures, other: Figures) -> tuple[float, float]:
    """The perplexities of two runs when they have cost the same, which is as much as the cheaper
    one costs to its end; between evaluations log perplexity is a straight line over the cost."""

    def points(figures: Figures):
        cost = [value for name, value in figures.items() if name.startswith(f"{unit} ")]
        perplexity = [v for name, v in figures.items() if name.startswith("perplexity ")]
        return cost, np.log(perplexity)

    end = min(points(one)[0][-1], points(other)[0][-1])
    return tuple(float(np.exp(np.interp(end, *points(figures)))) for figures in (one, other))
