"""Data sets are read at random, from as many files as there are."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor

import forked
import numpy as np
import pytest
import sets
import tensorflow_datasets as tfds

from jaxhist import UserError
from jaxhist.data import prepared

SHARDS = 4096


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with a set of a file for each example, whose number it has."""
    folder = tmp_path_factory.mktemp("many")
    examples = [{"text": str(i)} for i in range(SHARDS)]
    sets.write(folder, "many", {"text": tfds.features.Text()}, SHARDS, train=examples)
    return folder


def read(folder, limits, most):
    """In a process of its own, which may have no more files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    examples = prepared.examples(tfds.builder("many", data_dir=folder), "train")
    with ThreadPoolExecutor(8) as threads:  # one closes what another reads from
        numbers = list(threads.map(lambda i: int(examples[i]["text"]), range(SHARDS)))
    assert sorted(numbers) == [*range(SHARDS)]
    assert not os.path.isdir("/proc/self/fd") or len(os.listdir("/proc/self/fd")) < most


@pytest.mark.parametrize("limits, most", [((256, 256), 200), ((256, 1024), 600)])
def test_more_shards_than_files_that_may_be_open(many, limits, most):
    process = forked.FORKS.Process(target=read, args=(many, limits, most))
    process.start()
    process.join(300)
    assert process.exitcode == 0


NOISE = np.random.default_rng(0).bytes(200_000).hex()


def cut(path, raw):
    path.write_bytes(raw[: len(raw) // 4])


def flip(path, raw):
    path.write_bytes(raw[:100_000] + bytes([raw[100_000] ^ 1]) + raw[100_001:])


def remove(path, raw):
    path.unlink()


def no_utf_8(path, raw):
    """A set that was written so."""


@pytest.mark.parametrize(
    "damage, says",
    [
        (cut, r"tiny/1.0.0 train \d+ cannot be read \(.*\); prepare the data set again"),
        (flip, r"tiny/1.0.0 train \d+ cannot be read \(.*hash mismatch.*\); prepare the data"),
        (remove, r"tiny/1.0.0 train 0 cannot be read \(.*No such file.*\); prepare the data"),
        (no_utf_8, r"a text of tiny/1.0.0 train \d+ is not UTF-8 \(invalid start byte at byte 2\)"),
    ],
)
def test_an_example_that_cannot_be_read_is_named(damage, says, tmp_path):
    texts = [f"{i} {NOISE[1000 * i : 1000 * (i + 1)]}" for i in range(400)]
    if damage is no_utf_8:
        texts[7] = b"a \xff"
    examples = [{"text": text} for text in texts]
    sets.write(tmp_path, "tiny", {"text": tfds.features.Text()}, train=examples)
    (path,) = tmp_path.glob("tiny/1.0.0/*array_record*")
    damage(path, path.read_bytes())
    found = prepared.examples(tfds.builder("tiny", data_dir=tmp_path), "train")
    with pytest.raises(UserError, match=says) as raised:
        list(found)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"\xff"])
def test_a_damaged_description_is_no_missing_set(file, text, data_sets):
    sets.write(data_sets, "tiny", {"text": tfds.features.Text()}, train=[{"text": "a"}])
    (data_sets / "tiny/1.0.0" / file).write_bytes(text)
    with pytest.raises(UserError, match=f"description of data set 'tiny' in {data_sets} is dam"):
        prepared.parallel_texts("tiny", ["text"])


def no_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31)  # of nobody


def a_file(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", __file__)


@pytest.mark.parametrize(
    "home, says", [(no_home, "there is no home directory"), (a_file, "cannot be written: not a di")]
)
def test_a_cache_that_cannot_be_kept(home, says, monkeypatch):
    """It is said before the work."""
    home(monkeypatch)
    with pytest.raises(UserError, match=f"{says}.*set XDG_CACHE_HOME to a directory"):
        prepared.cached("nothing", lambda: pytest.fail("it was made"))
