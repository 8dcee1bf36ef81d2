import functools
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import needs

from jaxhist import UserError
from jaxhist.data import images, prepared


def test_digits_are_split_by_label_and_always_the_same():
    splits = images.digits(180).load()
    assert {name: len(split["label"]) for name, split in splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    for split in splits.values():
        share = np.bincount(split["label"]) / len(split["label"])
        assert abs(share - 0.1).max() < 0.01
        assert split["image"].dtype == np.uint8 and split["image"].shape[1:] == (8, 8, 1)
    again = images.digits(180).load()
    jax.tree.map(np.testing.assert_array_equal, splits, again)


def test_no_digit_is_in_two_splits():
    from sklearn.datasets import load_digits

    splits = images.digits(180).load()
    together = np.concatenate([split["image"] for split in splits.values()])
    key = lambda array: sorted(bytes(row.astype(np.uint8)) for row in array.reshape(len(array), -1))
    assert key(together) == key(load_digits().images * 15)


crop = functools.partial(jax.jit, static_argnums=2)(images.random_crop)


def test_random_crop_is_a_slow_loops():
    image = np.random.default_rng(0).normal(size=(40, 5, 6, 2)).astype(np.float32)
    got = np.asarray(crop(image, jax.random.key(0), 2))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for cropped, whole in zip(got, padded, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (cropped == whole[top : top + 5, left : left + 6]).all()
        ]
        assert len(found) == 1
        places.update(found)
    assert {top for top, _ in places} == {left for _, left in places} == set(range(5))


def test_a_crop_without_padding_changes_nothing():
    image = np.random.default_rng(0).normal(size=(3, 5, 5, 1)).astype(np.float32)
    np.testing.assert_array_equal(crop(image, jax.random.key(0), 0), image)


def test_random_mirror_turns_half():
    image = np.random.default_rng(0).normal(size=(400, 3, 4, 1)).astype(np.float32)
    got = np.asarray(images.random_mirror(image, jax.random.key(0)))
    turned = (got == image[:, :, ::-1]).all((1, 2, 3))
    assert ((got == image).all((1, 2, 3)) ^ turned).all()
    assert 160 < turned.sum() < 240


@needs("mnist")
def test_a_tfds_set_is_decoded_once_and_read_from_the_cache(tmp_path, monkeypatch):
    """Of the first two hundred examples of each split."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    examples, found = prepared.examples, []

    def few(builder, split, decoders):
        whole = examples(builder, split, decoders)
        found.append(len(whole))
        return [whole[i] for i in range(200)]

    monkeypatch.setattr(prepared, "examples", few)
    source = images.from_tfds("mnist", 100)
    assert source.shape == (28, 28, 1) and source.classes == 10
    splits = source.load()
    assert found == [60_000, 10_000]
    assert [len(splits[name]["label"]) for name in splits] == [100, 100, 200]
    direct = tfds.data_source("mnist", split="test")
    for i in (0, 199):
        np.testing.assert_array_equal(splits["test"]["image"][i], direct[i]["image"])
        assert splits["test"]["label"][i] == direct[i]["label"]
    cached = list((tmp_path / "jaxhist").iterdir())
    assert len(cached) == 2
    monkeypatch.setattr(images, "progress", None)  # to decode again would fail
    again = images.from_tfds("mnist", 100).load()
    jax.tree.map(np.testing.assert_array_equal, splits, again)
    for path in cached:
        path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cache .* is damaged"):
        images.from_tfds("mnist", 100).load()


def test_other_pictures_of_the_same_name_and_size_have_another_checksum(tmp_path):
    """So what was decoded from a damaged copy is not taken for what is there now."""
    records, folder = tmp_path / "set-test.array_record", SimpleNamespace(data_path=tmp_path)
    records.write_bytes(bytes(1000))
    damaged = prepared.checksum(folder)
    records.write_bytes(bytes(999) + b"1")
    assert prepared.checksum(folder) != damaged
    records.write_bytes(bytes(1000))
    assert prepared.checksum(folder) == damaged


@pytest.mark.parametrize("name", ["cifar10", "no_such_set"])
def test_a_set_that_is_not_there(name, data_sets):
    message = rf"'{name}' is not in {data_sets}; .*python -m jaxhist.data.prepare {name}"
    with pytest.raises(UserError, match=message):
        images.from_tfds(name, 10).load()


def test_a_folder_that_tfds_takes_for_a_pattern(tmp_path, monkeypatch):
    """Sets that it knows are not found there, whether they are there or not."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "[1]"))
    with pytest.raises(UserError, match=r"TFDS takes the \[ in .*; set TFDS_DATA_DIR to a link"):
        images.from_tfds("cifar10", 10).load()


def test_reduced_keeps_a_share_of_each_label_and_averages_squares():
    whole, part = images.digits(180), images.reduced(images.digits(180), 250, by=2)
    assert part.shape == (4, 4, 1) and part.classes == 10
    a, b = whole.load(), part.load()
    assert b["train"]["image"].shape == (250, 4, 4, 1) and b["train"]["image"].dtype == np.uint8
    assert set(np.bincount(b["train"]["label"])) <= {24, 25, 26}
    np.testing.assert_array_equal(b["test"]["label"], a["test"]["label"])
    square = a["test"]["image"][7, 2:4, 4:6, 0].mean()
    assert abs(b["test"]["image"][7, 1, 2, 0] - square) <= 0.5
    assert images.reduced(whole).load() is a


def test_what_cannot_be_reduced_is_refused():
    with pytest.raises(UserError, match="shrink 3 does not divide images of 8 x 8 pixels"):
        images.reduced(images.digits(180), by=3)
    with pytest.raises(UserError, match="5000 of 1257 examples cannot be held out"):
        images.reduced(images.digits(180), 5000).load()


def test_scaled_images_are_rows_of_pixels_from_0_to_1():
    source = images.digits(180)
    data = images.scaled(source)
    assert data.shape == (64,) and data.classes == 10
    train, stored = data.load()["train"], source.load()["train"]
    assert train["input"].dtype == np.float32
    np.testing.assert_allclose(train["input"][3, 8 + 2], stored["image"][3, 1, 2, 0] / 255)
    shapes = data.batch(7)
    assert shapes["input"].shape == (7, 64) and shapes["label"].shape == (7,)


def test_whitened_pixels_are_hardly_correlated():
    """What is left of the covariance V L V^T is V L / (L + 0.01) V^T."""
    data = images.whitened(images.digits(180))
    assert data.shape == (8, 8, 1)
    train = data.load()["train"]["input"].reshape(-1, 64)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-4)
    before = np.cov(images.scaled(images.digits(180)).load()["train"]["input"], rowvar=False)
    left = before @ np.linalg.inv(before + 0.01 * np.eye(64))
    np.testing.assert_allclose(np.cov(train, rowvar=False), left, atol=1e-4)
    test = data.load()["test"]["input"]  # by the training images' statistics
    assert test.shape == (360, 8, 8, 1) and 0 < np.abs(test.mean()) < 0.1


@needs("imagenet_sample")
def test_images_of_many_sizes_are_refused():
    with pytest.raises(UserError, match="differ in size"):
        images.from_tfds("imagenet_sample", 10)


@needs("glue")
def test_a_set_without_images_is_refused():
    with pytest.raises(UserError, match="has no image and label; it has"):
        images.from_tfds("glue/cola", 10)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_preparing_without_tensorflow_says_what_to_install():
    command = [sys.executable, "-m", "jaxhist.data.prepare", "mnist"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == (
        "error: preparing a data set needs TensorFlow, once: pip install -e '.[prepare]'\n"
    )


@needs("mnist")
def test_a_set_in_another_file_format_is_refused(tmp_path, monkeypatch):
    """As TFDS prepares it by default: records that cannot be read at random."""
    there = Path(tfds.core.constants.DATA_DIR).expanduser() / "mnist"
    shutil.copytree(there, tmp_path / "mnist", copy_function=shutil.copyfile)
    (info,) = (tmp_path / "mnist").glob("*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for path in info.parent.glob("*array_record*"):
        path.rename(path.parent / path.name.replace("array_record", "tfrecord"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="cannot be read at random; prepare it again"):
        images.from_tfds("mnist", 10).load()
