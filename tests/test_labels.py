"""Examples without a label, and with one of no class."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import sets
import tensorflow_datasets as tfds

from jaxhist import UserError, devices
from jaxhist.data import images, labels, photographs, sentences, text, words

CLASSES = 2
ALL = [i % CLASSES for i in range(40)]
NONE = [-1] * 20
SOME = [-1, *ALL[1:20]]


def builder(*splits):
    features = {"label": SimpleNamespace(num_classes=CLASSES)}
    info = SimpleNamespace(full_name="tiny/1.0.0", features=features, splits=dict.fromkeys(splits))
    return SimpleNamespace(info=info)


def parts(of_splits, validation):
    """How many examples each part has."""
    read = lambda split: {
        "x": np.arange(len(of_splits[split])),
        "label": np.array(of_splits[split]),
    }
    found = labels.splits(builder(*of_splits), read, validation)
    assert all((part["label"] >= 0).all() for part in found.values())
    assert all(len(part["x"]) == len(part["label"]) for part in found.values())
    return {name: len(part["label"]) for name, part in found.items()}


PARTS = "train", "validation", "test"
UNTESTED = "warning: tiny/1.0.0 has no labels in its split test: validation is for the test\n"


@pytest.mark.parametrize(
    "validation, of_splits, wanted, says",
    [
        (None, {"train": ALL, "validation": ALL[:20], "test": ALL[:10]}, (40, 20, 10), ""),
        (None, {"train": ALL, "test": ALL[:10]}, (36, 4, 10), ""),
        (None, {"train": ALL, "validation": ALL[:20], "test": NONE}, (36, 4, 20), UNTESTED),
        (6, {"train": ALL, "validation": ALL[:20], "test": NONE}, (34, 6, 20), UNTESTED),
        (6, {"train": ALL, "validation": ALL[:20]}, (34, 6, 20), UNTESTED),
        (6, {"train": ALL, "validation": NONE, "test": ALL[:20]}, (34, 6, 20), ""),
        (
            6,
            {"train": ALL, "test": SOME},
            (34, 6, 19),
            "warning: 1 of 20 examples of tiny/1.0.0 test have no label and are left out\n",
        ),
    ],
)
def test_what_has_labels_is_used(validation, of_splits, wanted, says, capsys):
    assert parts(of_splits, validation) == dict(zip(PARTS, wanted, strict=True))
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    "of_splits, says",
    [
        ({"train": NONE, "test": ALL}, "no labels in its split train"),
        ({"train": ALL, "test": NONE}, "no labels in its split test"),
        ({"train": ALL, "test": NONE, "validation": NONE}, "no labels in its split test"),
        ({"train": ALL, "test": [0, 1, 2]}, "example 2 of tiny/1.0.0 test has the label 2, but"),
        ({"train": [0, -2], "test": ALL}, "example 1 of tiny/1.0.0 train has the label -2, but"),
    ],
)
def test_labels_that_are_needed(of_splits, says):
    with pytest.raises(UserError, match=says):
        parts(of_splits, 2)


LABEL = tfds.features.ClassLabel(num_classes=CLASSES)
OF_SPLITS = {"train": [*ALL, -1], "validation": ALL[:20], "test": NONE}


def loaded_images(folder):
    picture = np.zeros((8, 8, 3), np.uint8)
    examples = lambda of: [{"image": sets.file(picture), "label": label} for label in of]
    features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": LABEL}
    sets.write(folder, "tiny", features, **{name: examples(of) for name, of in OF_SPLITS.items()})
    return images.from_tfds("tiny", 6).load()


def written_texts(folder):
    examples = lambda of: [{"text": f"{label} is it", "label": label} for label in of]
    features = {"text": tfds.features.Text(), "label": LABEL}
    sets.write(folder, "tiny", features, **{name: examples(of) for name, of in OF_SPLITS.items()})


def loaded_words(folder):
    written_texts(folder)
    return words.from_tfds("tiny", 6).load()


def loaded_sentences(folder):
    written_texts(folder)
    tokenizer = lambda: text.byte_pairs(["is it"], 300)
    marks = "[PAD]", "[EOS]"
    found = sentences.from_tfds("tiny", tokenizer, marks, 0, 4, 8, 0, devices.mesh(1))
    return {part: next(found.held_out(part)) for part in PARTS}


@pytest.mark.parametrize(
    "load, held_out", [(loaded_images, 6), (loaded_words, 6), (loaded_sentences, 4)]
)
def test_every_loader_knows_what_has_no_label(load, held_out, data_sets, capsys):
    found = load(data_sets)
    counts = {name: len(part["label"]) for name, part in found.items()}
    assert counts == {"train": 40 - held_out, "validation": held_out, "test": 20}
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert told == [
        "warning: 1 of 41 examples of tiny/1.0.0 train have no label and are left out",
        "warning: tiny/1.0.0 has no labels in its split test: validation is for the test",
    ]


def test_texts_that_are_cut_are_counted(data_sets, capsys):
    """A row of 12 has room for ten, and the marks that begin and end it."""
    features = {"text": tfds.features.Text(), "label": LABEL}
    long = [{"text": "is it, " * 20, "label": i % 2} for i in range(5)]
    short = [{"text": "is it", "label": i % 2} for i in range(15)]
    sets.write(data_sets, "tiny", features, train=long + short, test=short)
    tokenizer = text.byte_pairs(["is it, is it"], 300)
    count = lambda examples: sum(len(tokenizer.encode(e["text"]).ids) for e in examples)
    make = lambda length: sentences.from_tfds(
        "tiny", lambda: tokenizer, ("[PAD]", "[EOS]"), 0, 4, length, 0, devices.mesh(1)
    )
    for part in ("train", "test"):
        next(make(12).held_out(part))
    next(make(200).held_out("train"))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    (line,) = told
    found = re.fullmatch(
        r"warning: (\d+) of 18 texts of tiny train are longer than a row of 12 tokens and cut: "
        r"(\d+\.\d)% of all tokens are lost",
        line,
    )
    cut = int(found[1])  # of the training, without what was held out of it
    each = count(long[:1])
    whole = cut * each + (18 - cut) * count(short[:1])
    assert cut >= 4 and found[2] == f"{100 * cut * (each - 10) / whole:.1f}"


@pytest.mark.parametrize("label, says", [(-1, "has no label"), (2, "has the label 2, but there")])
def test_a_photograph_without_a_label_is_named(label, says):
    picture = sets.file(np.zeros((300, 300, 3), np.uint8)).read()
    photograph = photographs.Photograph(picture, np.int32(label), "tiny/1.0.0 train 7")
    source = photographs.Photographs(2, lambda split: [photograph], None)
    size, view = 1, photographs.square_crop
    data = photographs.crops(source, size, view, photographs.five_crops, 0, devices.mesh(1))
    with pytest.raises(UserError, match=f"tiny/1.0.0 train 7 {says}"):
        next(iter(data.test()))
