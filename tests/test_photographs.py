import functools
import io
import re
import types

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import needs
from etils import epath
from PIL import Image

from jaxhist import UserError, devices
from jaxhist.data import batches, photographs, prepared
from jaxhist.data.photographs import Photograph


def encode(image, form="JPEG", name="train 0"):
    """A photograph of an array [H, W, 3] or of a Pillow image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, quality=95)
    return Photograph(file.getvalue(), np.int32(0), name)


def scene(width, height, seed=0):
    """[H, W, 3] with structure at all scales, as in photographs."""
    random, image = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cells in (2, 8, 32):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 3
    return image.astype(np.uint8)


@pytest.mark.parametrize(
    "width, height", [(500, 375), (375, 500), (256, 256), (90, 1200), (71, 60)]
)
def test_scale_jitter_is_scaling_the_whole_and_cropping(width, height):
    """To two levels of 255: Pillow takes the box in single precision, so places are up to 1e-4
    pixels and values 0.03 levels off. That turns the rounding of a few per cent of the values, once
    in the horizontal and once in the vertical pass."""
    photograph = encode(scene(width, height))
    for seed in range(5):
        got = photographs.scale_jitter(photograph, np.random.default_rng(seed))
        random = np.random.default_rng(seed)
        image = Image.open(io.BytesIO(photograph.jpeg))
        scale = random.integers(256, 481) / min(image.size)
        image = image.resize((round(width * scale), round(height * scale)), Image.BILINEAR)
        left, top = random.integers(0, (image.width - 223, image.height - 223))
        want = np.asarray(image.crop((left, top, left + 224, top + 224)))
        assert got.shape == (224, 224, 3) and got.dtype == np.uint8
        difference = np.abs(got.astype(int) - want)
        assert difference.max() <= 2 and difference.mean() < 0.05


def test_scale_jitter_reaches_every_scale_and_place(monkeypatch):
    crops = []
    monkeypatch.setattr(photographs, "_crop", lambda image, *crop: crops.append(crop))
    random, photograph = np.random.default_rng(0), encode(scene(30, 20))
    for _ in range(2000):
        photographs.scale_jitter(photograph, random)
    size, corner, side = (np.array(part) for part in zip(*crops, strict=True))
    shorter = size[:, 1]
    assert (side == 224).all() and set(shorter) == set(range(256, 481))
    assert abs(shorter.mean() - 368) < 3 * 65 / 2000**0.5  # 65: the deviation of a uniform scale
    np.testing.assert_allclose(size[:, 0], shorter * 1.5, atol=0.5)
    place = corner / (size - 224)  # from 0 to 1, the ends included
    assert place.min() == 0 and place.max() == 1
    np.testing.assert_allclose(place.mean(0), 0.5, atol=3 * 0.29 / 2000**0.5)


def test_square_crop_is_a_window_of_the_central_square():
    image = scene(320, 256)
    photograph = encode(image, "PNG")  # nothing is lost, and nothing is to be scaled
    square, places = image[:, 32:288], set()
    for seed in range(20):
        got = photographs.square_crop(photograph, np.random.default_rng(seed))
        left, top = np.random.default_rng(seed).integers(0, 33, 2)
        np.testing.assert_array_equal(got, square[top : top + 224, left : left + 224])
        places.add((int(top), int(left)))
    assert len(places) > 15


def test_square_crop_reaches_every_place(monkeypatch):
    corners = []
    monkeypatch.setattr(
        photographs, "_crop", lambda image, size, corner, side: corners.append((size, corner, side))
    )
    random, photograph = np.random.default_rng(0), encode(scene(20, 30))
    for _ in range(1000):
        photographs.square_crop(photograph, random)
    size, corner, side = (np.array(part) for part in zip(*corners, strict=True))
    assert (size == (256, 384)).all() and (side == 224).all()
    assert set(corner[:, 0]) == set(range(33)) and set(corner[:, 1]) == set(range(64, 97))


@pytest.mark.parametrize("width, height", [(2000, 1500), (1023, 767), (511, 513), (4096, 300)])
def test_decoding_at_a_fraction_loses_no_size(width, height):
    photograph = encode(scene(width, height))
    image, size = photographs._open(photograph, 256)
    assert min(size) == 256
    assert all(have >= wanted for have, wanted in zip(image.size, size, strict=True))
    assert (image.size != (width, height)) == (min(width, height) >= 512)
    whole = Image.open(io.BytesIO(photograph.jpeg)).resize(size, Image.BILINEAR)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    want = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    assert np.abs(photographs.center_crop(photograph).astype(int) - want).mean() < 1


def test_views_for_testing_are_the_corners_and_the_centre():
    image = scene(320, 256)
    photograph = encode(image, "PNG")  # nothing is lost, and nothing is to be scaled
    square = image[:, 32:288]
    want = [square[:224, :224], square[:224, 32:], square[32:, :224], square[32:, 32:]]
    want.append(square[16:240, 16:240])
    np.testing.assert_array_equal(photographs.five_crops(photograph), want)
    np.testing.assert_array_equal(photographs.center_crop(photograph), want[-1])


@pytest.mark.parametrize("mode, form", [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG")])
def test_every_photograph_becomes_red_green_and_blue(mode, form):
    image = Image.fromarray(scene(300, 260)).convert(mode)
    got = photographs.center_crop(encode(image, form))
    want = photographs.center_crop(encode(image.convert("RGB"), "PNG"))
    assert got.shape == (224, 224, 3)
    assert np.abs(got.astype(int) - want).mean() < 2
    if mode == "L":
        assert (got == got[..., :1]).all()


whole = encode(scene(300, 260)).jpeg


@pytest.mark.parametrize("jpeg", [whole[: len(whole) // 2], b"", b"\xff\xd8\xff\xe0", whole[99:]])
def test_a_damaged_photograph_is_named(jpeg):
    train = [Photograph(whole, np.int32(0), f"train {i}") for i in range(9)]
    train[5] = Photograph(jpeg, np.int32(0), "train 5")
    data = batches.streamed(
        lambda: train, photographs.scale_jitter, 8, 0, devices.mesh(), lambda batch, key: batch
    )
    for read in (
        lambda: list(batches.in_order(train, photographs.center_crop, 4)),
        lambda: [data(step, None) for step in range(2)],
    ):
        with pytest.raises(UserError) as raised:
            read()
        message = r"the image of train 5 is damaged: [a-z()0-9 ]+; prepare the data set again"
        assert re.fullmatch(message, str(raised.value))


@pytest.mark.parametrize("name", ["imagenet2012", "no_such_set"])
def test_a_set_that_is_not_there(name, data_sets):
    message = rf"'{name}' is not in {data_sets}; .*python -m jaxhist.data.prepare {name}"
    with pytest.raises(UserError, match=message):
        photographs.from_tfds(name).load("train")


@needs("imagenet_sample")
def test_a_tfds_set_is_read_as_it_is_stored():
    source = photographs.from_tfds("imagenet_sample")
    train = source.load("train")
    assert source.classes == 1000 and len(train) == 1000
    assert sorted(photograph.label for photograph in train) == list(range(1000))
    decoded = tfds.data_source("imagenet_sample", split="train")
    for i in (0, 999):
        assert train[i].jpeg[:2] == b"\xff\xd8" and train[i].name.endswith(f"train {i}")
        assert train[i].label == decoded[i]["label"]
        image = np.asarray(Image.open(io.BytesIO(train[i].jpeg)))
        np.testing.assert_array_equal(image, decoded[i]["image"])
    with pytest.raises(UserError, match="has no split 'validation'; it has train"):
        source.load("validation")


@needs("imagenet_sample")
def test_a_stream_of_photographs_is_a_function_of_the_step():
    train = photographs.from_tfds("imagenet_sample").load("train")

    def make(workers):
        view = lambda photograph, random: {
            "image": photographs.scale_jitter(photograph, random),
            "label": photograph.label,
        }
        mesh = devices.mesh(1)
        return batches.streamed(lambda: train, view, 16, 3, mesh, lambda batch, key: batch, workers)

    one, four = make(1), make(4)
    straight = [one(step, None) for step in range(4)]
    resumed = [four(step, None) for step in (2, 3)]
    assert straight[0]["image"].shape == (16, 224, 224, 3)
    assert straight[0]["image"].dtype == np.uint8 and straight[0]["label"].dtype == np.int32
    jax.tree.map(np.testing.assert_array_equal, straight[2:], resumed)


def test_colour_shift_is_a_slow_loops():
    image = np.random.default_rng(0).uniform(size=(6, 4, 5, 3)).astype(np.float32)
    covariance = np.cov(np.random.default_rng(1).normal(size=(3, 9))).astype(np.float32)
    key = jax.random.key(0)
    got = jax.jit(functools.partial(photographs.colour_shift, covariance=covariance))(image, key)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    draws = 0.1 * np.asarray(jax.random.normal(key, (6, 3)))
    for n in range(6):
        for y in range(4):
            for x in range(5):
                want = image[n, y, x].copy()
                for i in range(3):
                    want += draws[n, i] * eigenvalues[i] * eigenvectors[:, i]
                np.testing.assert_allclose(got[n, y, x], want, atol=1e-6)


def test_colour_shift_has_the_papers_covariance():
    """Of p1 a1 l1 + p2 a2 l2 + p3 a3 l3 it is 0.1^2 C C, whatever the eigenvectors' signs."""
    covariance = np.float32([[0.07, 0.06, 0.05], [0.06, 0.07, 0.06], [0.05, 0.06, 0.08]])
    image = np.zeros((20_000, 1, 1, 3), np.float32)
    shift = photographs.colour_shift(image, jax.random.key(0), covariance)[:, 0, 0]
    want = 0.01 * covariance @ covariance
    np.testing.assert_allclose(np.cov(shift.T), want, rtol=0.05)


def test_statistics_are_numpys():
    train = [encode(scene(300, 260, seed), name=f"train {seed}") for seed in range(7)]
    for at_most, chosen in [(10, range(7)), (3, (0, 2, 4))]:
        got = photographs.estimate(train, at_most)
        image = np.stack([photographs.center_crop(train[i]) for i in chosen]) / 255
        np.testing.assert_allclose(got.mean, image.mean(0), atol=1e-6)
        want = np.cov(image.reshape(-1, 3), rowvar=False, bias=True)
        np.testing.assert_allclose(got.covariance, want, rtol=1e-4)


@needs("imagenet_sample")
def test_statistics_of_photographs_are_estimated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    estimate = functools.partial(photographs.estimate, at_most=200)
    monkeypatch.setattr(photographs, "estimate", estimate)
    statistics = photographs.from_tfds("imagenet_sample").statistics()
    # What the public re-implementations of AlexNet use, of all of ImageNet.
    published = [0.0045, 0.0188, 0.2175]
    np.testing.assert_allclose(np.linalg.eigvalsh(statistics.covariance), published, rtol=0.2)
    monkeypatch.setattr(photographs, "estimate", None)
    again = photographs.from_tfds("imagenet_sample").statistics()
    jax.tree.map(np.testing.assert_array_equal, statistics, again)


def test_a_fingerprint_is_of_metadata_and_sizes(tmp_path):
    builder = types.SimpleNamespace(data_path=epath.Path(tmp_path))
    changes = [
        ("dataset_info.json", b'{"version": "1.0.0"}'),
        ("dataset_info.json", b'{"version": "1.0.1"}'),
        ("set-train.array_record-00000-of-00002", b"records"),
        ("set-train.array_record-00000-of-00002", b"more records"),
        ("set-train.array_record-00001-of-00002", b"records"),
    ]
    seen = set()
    for name, content in changes:
        (tmp_path / name).write_bytes(content)
        seen.add(prepared.fingerprint(builder))
    assert len(seen) == len(changes)
    assert prepared.fingerprint(builder) in seen
