"""Data sets are read at random, from as many files as there are."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor

import forked
import pytest
import sets
import tensorflow_datasets as tfds

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
    assert [e["text"] for e in examples.__getitems__([7, 7])] == [examples[7]["text"]] * 2
    assert not os.path.isdir("/proc/self/fd") or len(os.listdir("/proc/self/fd")) < most


@pytest.mark.parametrize("limits, most", [((256, 256), 200), ((256, 1024), 600)])
def test_more_shards_than_files_that_may_be_open(many, limits, most):
    process = forked.FORKS.Process(target=read, args=(many, limits, most))
    process.start()
    process.join(300)
    assert process.exitcode == 0
