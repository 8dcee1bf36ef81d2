"""Every experiment, on a network so small that it takes seconds."""

import dataclasses
import functools
import itertools
from pydoc_data.topics import topics

from experiments import (
    adam,
    alexnet,
    attention,
    bert,
    dqn,
    gan,
    gan_samples,
    googlenet,
    gpt,
    gpt_text,
    regression,
    seq2seq,
    simclr,
    simclr_probe,
    transformer,
)
from jaxhist import evaluate
from jaxhist.data import documents, masked, prepared, translation

BRIEF = {"batch": 16, "steps": 6, "evaluate_every": 3}
LABELS = {"learn": "labels", "data": "sst_binary", "layers": 1, "warmup": 0}


def tiny(module, preset, **changes):
    """A preset of a script, made small."""
    config = dataclasses.replace(module.PRESETS[preset], **BRIEF, **changes)
    return f"{module.__name__.split('.')[1]} {changes.get('data', preset)}", module, config


# Its name, the script, and its configuration.
EXPERIMENTS = [
    tiny(regression, "small"),
    tiny(adam, "small", widths=(16,), rates=(0.001, 0.01)),
    tiny(adam, "convolutional", widths=(4, 4, 4, 8)),
    tiny(adam, "autoencoder", widths=(8, 2)),
    tiny(alexnet, "small", width=4, hidden=(8,), normalize=True),
    tiny(dqn, "small", memory=200, begin=8, rounds=4, most=30),
    tiny(gan, "small", widths=(16,), units=4, samples=200),
    tiny(googlenet, "small"),
    tiny(seq2seq, "small", vocabulary=(60,), n=8, layers=1, length=32, beams=1),
    tiny(attention, "small", vocabulary=(60,), n=8, m=4, l=4, length=32, beams=1),
    tiny(transformer, "small", vocabulary=(60,), layers=1, width=16, hidden=16, length=32, beams=2),
    tiny(bert, "small", vocabulary=300, layers=1, width=8, length=32, warmup=0),
    tiny(bert, "small", vocabulary=300, width=8, length=32, **LABELS),
    tiny(gpt, "small", data="letters", vocabulary=262, layers=1, width=16, heads=2, dropout=0.1),
    tiny(gpt, "small", vocabulary=262, width=16, heads=2, dropout=0.1, **LABELS),
    tiny(simclr, "small", examples=200, widths=(4, 8), warmup=0),
]


def brief(setattr):
    """What measures samples learns for an epoch, and a classifier of features on few of them;
    numbers to be translated are few and short, and so are documents; examples of data sets and
    questions are few, and so are the images on a map."""
    letters, examples, probe = documents.letters, prepared.examples, evaluate.probe
    few = lambda features: evaluate.Features(*(array[:100] for array in features))
    setattr(gan_samples, "SEEN", 1)
    setattr(evaluate, "probe", lambda train, test: probe(few(train), few(test)))
    setattr(translation, "HELD_OUT", 16)
    setattr(translation, "DIGITS", 4)
    setattr(masked, "TESTED", 16)
    setattr(gpt_text, "QUESTIONS", 16)
    setattr(prepared, "examples", lambda *of: list(itertools.islice(examples(*of), 100)))
    setattr(documents, "python", few_documents)
    setattr(documents, "letters", lambda split: letters(split)[:100])
    setattr(simclr_probe, "draw_map", functools.partial(simclr_probe.draw_map, count=100))


def few_documents(split):
    return [text[:1500] for text in list(topics.values())[:8]]
