"""TFDS data sets as they lie prepared on this machine, read at random and without TensorFlow."""

import bisect
import functools
import hashlib
import itertools
import json
import os
import resource
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epy
from google.protobuf import json_format

from jaxhist import UserError, quiet
from jaxhist.files import failing_in_one_line

with epy.lazy_imports():
    from array_record.python import array_record_data_source

FILES = 2048  # that a process wants to have open at a time


def labelled_images(name: str) -> tfds.core.DatasetBuilder:
    """The description of a data set with `image` and `label`, from $TFDS_DATA_DIR or
    ~/tensorflow_datasets.

    Args:
      name: such as "mnist", or "cifar10:3.0.2".

    Raises:
      UserError: it is not there, or not made of such examples.
    """
    builder = _described(name)
    features = builder.info.features
    if not {"image", "label"} <= features.keys():
        raise UserError(f"data set {name!r} has no image and label; it has {', '.join(features)}")
    if features["image"].np_dtype != np.uint8 or not hasattr(features["label"], "num_classes"):
        raise UserError(f"data set {name!r} is not made of uint8 images with one label each")
    return builder


def labelled_texts(name: str) -> tuple[tfds.core.DatasetBuilder, list[str]]:
    """The description of a data set with texts and `label`, likewise, and the texts' names in it.

    Raises:
      UserError: it is not there, or not made of such examples.
    """
    builder = _described(name)
    features = builder.info.features
    texts = [key for key in features if isinstance(features[key], tfds.features.Text)]
    if not texts or "label" not in features or not hasattr(features["label"], "num_classes"):
        raise UserError(
            f"data set {name!r} has no text with a label of a class; it has {', '.join(features)}"
        )
    return builder, texts


def parallel_texts(name: str, languages: Sequence[str]) -> tfds.core.DatasetBuilder:
    """The description of a data set with a text in each of the languages, likewise.

    Raises:
      UserError: it is not there, or has no such texts.
    """
    builder = _described(name)
    features = builder.info.features
    texts = [key for key in features if isinstance(features[key], tfds.features.Text)]
    if not set(languages) <= set(texts):
        raise UserError(
            f"data set {name!r} has no texts {' and '.join(languages)}; it has {', '.join(texts)}"
        )
    return builder


@quiet("tensorflow_datasets")
def _described(name: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name)
    except (json.JSONDecodeError, json_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(
            f"the description of data set {name!r} in {tfds.core.constants.DATA_DIR} is damaged "
            f"({error}); prepare it again: python -m jaxhist.data.prepare {name}"
        ) from error
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        raise _missing(name) from error


@quiet("tensorflow_datasets")
def examples(
    builder: tfds.core.DatasetBuilder, split: str, decoders: dict[str, Any] | None = None
) -> Sequence[dict[str, Any]]:
    """The examples of a split, each read when it is asked for. Texts are `str`.

    Args:
      builder: of the data set.
      split: such as "train".
      decoders: TFDS's, by feature, where a feature is to be decoded otherwise or not at all.

    Raises:
      UserError: the data set or the split is not there, or its files cannot be read at random;
        later, where an example is damaged.
    """
    if not builder.is_prepared():
        raise _missing(builder.name)
    if split not in builder.info.splits:
        raise UserError(
            f"data set {builder.info.full_name!r} has no split {split!r}; "
            f"it has {', '.join(builder.info.splits)}"
        )
    try:
        source = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:  # of another file format than ArrayRecord
        raise UserError(
            f"data set {builder.info.full_name!r} is stored as {builder.info.file_format.name}, "
            "which cannot be read at random; prepare it again: "
            f"python -m jaxhist.data.prepare {builder.name}"
        ) from error
    source.data_source = _Records(builder, split)
    return _Examples(f"{builder.info.full_name} {split}", source, builder.info.features)


class _Examples(Sequence):
    """Of TFDS's own, with the name of one that cannot be read."""

    def __init__(self, name: str, source: Sequence[dict], features: tfds.features.FeaturesDict):
        self._name, self._source = name, source
        self._texts = [key for key in features if isinstance(features[key], tfds.features.Text)]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # so that it can be iterated over
        try:
            example = self._source[index]
            return example | {key: example[key].decode() for key in self._texts}
        except UnicodeDecodeError as error:
            raise UserError(
                f"a text of {self._name} {index} is not UTF-8 ({error.reason} at byte "
                f"{error.start}); prepare the data set again"
            ) from error
        except (RuntimeError, ValueError, IndexError) as error:  # ArrayRecord's
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self._name} {index} cannot be read ({reason}); prepare the data set again"
            ) from error


class _Records:
    """The records of a split. TFDS's own keeps the file of every shard open, and ImageNet has as
    many shards as a process may have files, 1,024."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self._shards = builder.info.splits[split].file_instructions
        self._ends = list(itertools.accumulate(shard.take for shard in self._shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        place = bisect.bisect_right(self._ends, index)
        shard = self._shards[place]
        return _reader()(shard)[index - self._ends[place] + shard.take]


@functools.cache
def _reader() -> Callable:
    """shard -> its records. This process is allowed as many files as it wants and the system lets
    it have, and half of them are kept open; the one that was not used for the longest time is
    closed as soon as no thread reads from it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    opened = lambda shard: array_record_data_source.ArrayRecordDataSource([shard])
    return functools.lru_cache(maxsize=most // 2)(opened)


def cached(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays that are made once, then kept in ~/.cache/jaxhist (or $XDG_CACHE_HOME).

    Args:
      name: of the arrays. It must change with everything that they are made from.
      make: makes them.

    Raises:
      UserError: there is no home, or the cache is damaged or cannot be written.
    """
    elsewhere = "set XDG_CACHE_HOME to a directory that can be written"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxhist"
    except RuntimeError as error:
        raise UserError(f"there is no home directory to keep a cache in; {elsewhere}") from error
    path = cache / f"{name.replace('/', '-')}.npz"
    with failing_in_one_line(cache, f"make room, or {elsewhere}"):
        cache.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        arrays = make()
        with failing_in_one_line(cache, f"make room, or {elsewhere}"):
            draft = path.with_name(f"{path.name}.{os.getpid()}")
            with draft.open("wb") as file:
                np.savez(file, **arrays)
            draft.rename(path)
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the cache {path} is damaged ({error}); remove it") from error


def checksum(builder: tfds.core.DatasetBuilder) -> str:
    """Of the contents of a data set's files. It reads them all."""
    digest = hashlib.sha256()
    for path in sorted(builder.data_path.iterdir()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """Of the metadata of a data set, and of the names and sizes of its files; of what is in its
    records nothing is read, since ImageNet's 150 GB would take many minutes at every start.

    Enough for estimates. The metadata has the version, the splits with the number of examples and
    bytes of each, the features and the names of the labels, so another version, a part of the set,
    or one prepared otherwise has another fingerprint. It does not notice a byte changed in place.
    """
    digest = hashlib.sha256()
    for path in sorted(builder.data_path.iterdir()):
        digest.update(f"{path.name} {path.stat().length}\n".encode())
        if path.suffix in (".json", ".txt"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _missing(name: str) -> UserError:
    folder = str(tfds.core.constants.DATA_DIR)
    if "[" in folder:
        return UserError(
            f"TFDS takes the [ in {folder} for a pattern; set TFDS_DATA_DIR to a link to it"
        )
    return UserError(
        f"data set {name!r} is not in {folder}; set TFDS_DATA_DIR to where "
        f"it lies, or prepare it: python -m jaxhist.data.prepare {name}"
    )
