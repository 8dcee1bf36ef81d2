"""Examples that have labels, in three splits."""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from etils import epy

from jaxhist import UserError, warn

with epy.lazy_imports():  # it takes a second
    from sklearn import model_selection

Split = dict[str, np.ndarray]  # arrays with the same first axis; "label" is [N] int32
NONE = -1  # what TFDS gives as the label of an example without one


def known(label: int, classes: int, example: str) -> np.int32:
    """The label of an example.

    Args:
      label: as it is stored.
      classes: how many there are.
      example: its data set, its split and its place in it, for the message.

    Raises:
      UserError: it has none, or one of no class.
    """
    if label == NONE:
        raise UserError(f"{example} has no label; leave it out and prepare the data set again")
    if not 0 <= label < classes:
        raise UserError(f"{example} has the label {label}, but there are {classes} classes")
    return np.int32(label)


def splits(
    builder: tfds.core.DatasetBuilder, read: Callable[[str], Split], validation: int | None = None
) -> dict[str, Split]:
    """The splits train, validation and test of a TFDS data set, without the examples that have no
    label.

    Where there is no label in the split test, as in GLUE, or no such split, validation is for the
    test.

    Args:
      builder: of the data set.
      read: makes the arrays of a split, of all its examples.
      validation: how many training examples to hold out. Without it, the split validation is what
        it says where it is not the test, else it is a tenth of the training.

    Raises:
      UserError: there is no label to train on or to test on, or one of no class.
    """
    name, there = builder.info.full_name, builder.info.splits
    classes = builder.info.features["label"].num_classes

    @functools.cache
    def labelled(split: str) -> Split:
        found = read(split)
        label = found["label"]
        for i in np.flatnonzero((label != NONE) & ((label < 0) | (label >= classes))):
            known(label[i], classes, f"example {i} of {name} {split}")
        missing = int(np.sum(label == NONE))
        if not missing:
            return found
        if missing < len(label):
            some = f"{missing:,} of {len(label):,} examples"
            warn(f"{some} of {name} {split} have no label and are left out")
        return {key: array[label != NONE] for key, array in found.items()}

    has = lambda split: split in there and len(labelled(split)["label"]) > 0
    parts = {"train": labelled("train")}
    tested = "validation" if not has("test") and has("validation") else "test"
    parts["test"] = labelled(tested)
    for split, part in zip(("train", tested), parts.values(), strict=True):
        if not len(part["label"]):
            raise UserError(f"data set {name!r} has no labels in its split {split}")
    if tested == "validation":
        warn(f"{name} has no labels in its split test: validation is for the test")
    if validation is None and tested == "test" and has("validation"):
        train, held_out = parts["train"], labelled("validation")
    else:
        tenth = len(parts["train"]["label"]) // 10
        train, held_out = split_off(parts["train"], tenth if validation is None else validation)
    return {"train": train, "validation": held_out, "test": parts["test"]}


def check_each(name: str, size: int, classes: int):
    """Raise UserError if so many examples cannot have one of each class."""
    if size < classes:
        raise UserError(f"{name} must be at least {classes}, one of each class, not {size}")


def split_off(split: Split, size: int) -> tuple[Split, Split]:
    """A split without `size` examples, and these; stratified by label, always the same ones.

    Raises:
      UserError: that leaves one of the two without an example of each label.
    """
    label = split["label"]
    try:
        rest, chosen = model_selection.train_test_split(
            np.arange(len(label)), test_size=size, stratify=label, random_state=0
        )
    except ValueError as error:
        raise UserError(f"{size} of {len(label)} examples cannot be held out: {error}") from error
    return tuple({name: array[index] for name, array in split.items()} for index in (rest, chosen))
