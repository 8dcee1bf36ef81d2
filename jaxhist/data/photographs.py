"""Photographs of different sizes, such as ImageNet's: stored as JPEG, cut to 224 x 224.

A view makes an array of one photograph on the host: it decodes it, and scales only what it cuts
out. Mirror images, colours and normalisation follow on the device, in an experiment's `prepare`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax.sharding import Mesh
from PIL import Image

from jaxhist import progress
from jaxhist.algorithm import Key
from jaxhist.data import batches, images, labels, pictures, prepared
from jaxhist.data.images import Labelled

SIZE = 224  # pixels, of a view
SIDE = 256  # pixels, of the central square that the views for testing are cut from


class Photograph(NamedTuple):
    """As it is stored."""

    jpeg: bytes
    label: np.int32
    name: str  # the split and the place in it, for messages


class Statistics(NamedTuple):
    """Of the pixels of a training split, from 0 to 1."""

    mean: np.ndarray  # [224, 224, 3] float32, the mean image
    covariance: np.ndarray  # [3, 3] float32, of red, green and blue


class Photographs(NamedTuple):
    """A data set. What is known without reading it, and how to read it."""

    classes: int
    load: Callable[[str], Sequence[Photograph]]  # of a split; each is read when it is asked for
    statistics: Callable[[], Statistics]  # of the split train; estimated once and kept


def from_tfds(name: str) -> Photographs:
    """A TFDS data set, read without TensorFlow from $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Args:
      name: such as "imagenet2012", of labelled images of any size. It must have the split train.

    Raises:
      UserError: it is not there, or not made of labelled images.
    """
    builder = prepared.labelled_images(name)

    @functools.cache
    def load(split: str) -> Sequence[Photograph]:
        as_stored = {"image": tfds.decode.SkipDecoding()}
        examples = prepared.examples(builder, split, as_stored)
        return _Split(f"{builder.info.full_name} {split}", examples)

    @functools.cache
    def statistics() -> Statistics:
        train = load("train")
        key = f"{builder.info.full_name}-statistics-{prepared.fingerprint(builder)}"
        return Statistics(**prepared.cached(key, lambda: estimate(train)._asdict()))

    return Photographs(builder.info.features["label"].num_classes, load, statistics)


@dataclass(frozen=True)
class _Split(Sequence):
    name: str
    examples: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Photograph:
        example = self.examples[i]
        return Photograph(example["image"], np.int32(example["label"]), f"{self.name} {i}")


View = Callable[[Photograph, np.random.Generator], np.ndarray]


def crops(
    source: Photographs,
    batch: int,
    view: View,
    test_view: Callable[[Photograph], np.ndarray],
    seed: int,
    mesh: Mesh,
    size: int = 32,
) -> Labelled:
    """Photographs in batches: cropped by `view`, mirrored, in shifted colours, and centred, as in
    AlexNet, section 4.1. A test sees each of `test_view` and its mirror image.

    Args:
      source: of the photographs.
      batch: examples in a training batch.
      view: makes [224, 224, 3] uint8 to train with.
      test_view: makes [V, 224, 224, 3] uint8 to test with.
      seed: of the run.
      mesh: that the batches are split over.
      size: examples in a batch of the test.
    """

    def center(image):
        return image - jnp.broadcast_to(source.statistics().mean, image.shape)

    def augment(batch, key):
        mirror_key, colour_key = jax.random.split(key)
        image = images.random_mirror(batch["image"] / 255, mirror_key)
        image = colour_shift(image, colour_key, source.statistics().covariance)
        return {**batch, "image": center(image)}

    def views(image):
        seen = jnp.moveaxis(image, 1, 0) / 255  # [B, V, H, W, C] -> [V, B, H, W, C]
        return center(jnp.concatenate([seen, seen[..., ::-1, :]]))

    def seen(photograph, image):
        label = labels.known(photograph.label, source.classes, photograph.name)
        return {"image": image, "label": label}

    def train(photograph, random):
        return seen(photograph, view(photograph, random))

    def test():
        see = lambda photograph: seen(photograph, test_view(photograph))
        return batches.in_order(source.load("validation"), see, size)

    shape = (SIZE, SIZE, 3)
    return Labelled(
        shape,
        source.classes,
        images.shapes(batch, shape),
        batches.streamed(lambda: source.load("train"), train, batch, seed, mesh, augment),
        # As in the papers: the split "validation" is what is reported, so it chooses nothing.
        validation=test,
        test=test,
        views=views,
        size=size,
        score="",
    )


# Views.


def square_crop(photograph: Photograph, random: np.random.Generator) -> np.ndarray:
    """AlexNet, section 4.1: a random crop of the central square at scale 256.
    -> [224, 224, 3] uint8."""
    image, (width, height) = _open(photograph, SIDE)
    left, top = random.integers(0, SIDE - SIZE + 1, 2)
    corner = (width - SIDE) // 2 + left, (height - SIDE) // 2 + top
    return _crop(image, (width, height), corner, SIZE)


def scale_jitter(photograph: Photograph, random: np.random.Generator) -> np.ndarray:
    """ResNet, section 3.4: scaled so that the shorter side is random in [256, 480], then a random
    crop. -> [224, 224, 3] uint8."""
    image, (width, height) = _open(photograph, random.integers(256, 481))
    left, top = random.integers(0, (width - SIZE + 1, height - SIZE + 1))
    return _crop(image, (width, height), (left, top), SIZE)


def center_crop(photograph: Photograph) -> np.ndarray:
    """The centre at scale 256. -> [224, 224, 3] uint8."""
    image, (width, height) = _open(photograph, SIDE)
    return _crop(image, (width, height), ((width - SIZE) // 2, (height - SIZE) // 2), SIZE)


def central_square(photograph: Photograph, side: int) -> np.ndarray:
    """DCGAN, section 4: the centre, cropped and scaled. -> [side, side, 3] uint8."""
    image, size = _open(photograph, side)
    corner = tuple((length - side) // 2 for length in size)
    return _crop(image, size, corner, side)


def five_crops(photograph: Photograph) -> np.ndarray:
    """AlexNet, section 4.1: four corners and the centre of the central square at scale 256. Their
    mirror images, to be made on the device, make them ten. -> [5, 224, 224, 3] uint8."""
    image, (width, height) = _open(photograph, SIDE)
    square = _crop(image, (width, height), ((width - SIDE) // 2, (height - SIDE) // 2), SIDE)
    far = SIDE - SIZE
    corners = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    return np.stack([square[top : top + SIZE, left : left + SIZE] for top, left in corners])


def inception_crop(photograph: Photograph, random: np.random.Generator) -> np.ndarray:
    """GoogLeNet, section 6: a random part of the photograph, whatever its scale and shape, scaled
    to the size of a view with a random interpolation. -> [224, 224, 3] uint8."""
    with pictures.naming(photograph.name):
        image = pictures.opened(photograph.jpeg)
        length = pictures.size(image)
        corner, part = random_part(length, random)
        scale = SIZE / min(part)
        image = pictures.decoded(image, least=tuple(math.ceil(side * scale) for side in length))
    box = [
        place * have / had
        for end in (corner, np.add(corner, part))
        for place, have, had in zip(end, image.size, length, strict=True)
    ]
    return np.asarray(image.resize((SIZE, SIZE), INTERPOLATIONS[random.integers(4)], box))


# Bilinear, area, nearest neighbour and cubic.
INTERPOLATIONS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.NEAREST,
    Image.Resampling.BICUBIC,
)


def random_part(
    size: tuple[int, int], random: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Left and top, width and height of a part that has 8 to 100 % of the area, evenly
    distributed, and an aspect ratio from 3/4 to 4/3.

    Not in the paper: the ratio's logarithm is evenly distributed, so that upright and lying parts
    are equally frequent. What does not fit is drawn anew; after ten times it is the central square.
    """
    width, height = size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        part = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if part[0] <= width and part[1] <= height:
            left, top = random.integers(0, (width - part[0] + 1, height - part[1] + 1))
            return (int(left), int(top)), part
    side = min(size)
    return ((width - side) // 2, (height - side) // 2), (side, side)


def inception_crops(photograph: Photograph) -> np.ndarray:
    """GoogLeNet, section 7: at scales 256, 288, 320 and 352 the left, central and right square, or
    top, central and bottom; of each its four corners, its centre, and the whole, scaled. Their
    mirror images, to be made on the device, make them 144. -> [72, 224, 224, 3] uint8."""
    views = []
    for side in (256, 288, 320, 352):
        image, size = _open(photograph, side)
        image = image.resize(size, Image.Resampling.BILINEAR)
        for i in range(3):
            left, top = ((length - side) * i // 2 for length in size)
            square = image.crop((left, top, left + side, top + side))
            far = side - SIZE
            corners = [(0, 0), (far, 0), (0, far), (far, far), (far // 2, far // 2)]
            views += [square.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
            views.append(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return np.stack(views)


def _open(photograph: Photograph, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A photograph, and the width and height that give its shorter side `side` pixels."""
    with pictures.naming(photograph.name):
        image = pictures.opened(photograph.jpeg)
        length = pictures.size(image)
        size = tuple(round(long * side / min(length)) for long in length)
        return pictures.decoded(image, least=size), size


def _crop(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], side: int
) -> np.ndarray:
    """The square at `corner` that scaling the image to `size` and cutting would give, without
    scaling what is cut off. -> [side, side, 3] uint8."""
    # Not in the paper: the interpolation, bilinear, smoothed where an image gets smaller.
    box = [
        (begin + extent) * length / scaled
        for extent in (0, side)
        for begin, length, scaled in zip(corner, image.size, size, strict=True)
    ]
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box))


# Colours.


def colour_shift(image: jax.Array, key: Key, covariance: np.ndarray) -> jax.Array:
    """AlexNet, section 4.1: add [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T to all pixels of an image, with
    p and l the eigenvectors and eigenvalues of the colours' covariance, and a ~ N(0, 0.1^2).

    Args:
      image: [B, H, W, 3] pixels from 0 to 1. They may leave this range.
      key: of a, drawn for each image.
      covariance: [3, 3] of such pixels. A numpy array: it is decomposed when this is traced.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    a = 0.1 * jax.random.normal(key, (len(image), 3))
    shift = a @ (eigenvectors * eigenvalues).T.astype(np.float32)
    return image + shift[:, None, None, :]


def estimate(photographs: Sequence[Photograph], at_most: int = 10_000) -> Statistics:
    """The mean image and the covariance of the colours, over the centres of photographs.

    Not in the paper: of `at_most` of them, evenly spaced, not of all. A pixel's standard deviation
    is 0.28, so the standard error of the mean of 10,000 is 0.003, less than 1/255.
    """
    count = min(len(photographs), at_most)
    chosen = np.arange(count) * len(photographs) // count
    views = batches.in_order(chosen, lambda i: center_crop(photographs[i]), 50)
    mean, product = np.zeros((SIZE, SIZE, 3)), np.zeros((3, 3))
    for batch in progress(views, "mean image and colours", -(-count // 50)):
        image = batch / 255
        mean += image.sum(0) / count
        colour = image.reshape(-1, 3)
        product += colour.T @ colour / (count * SIZE * SIZE)
    colour = mean.mean((0, 1))
    covariance = product - np.outer(colour, colour)
    return Statistics(mean.astype(np.float32), covariance.astype(np.float32))
