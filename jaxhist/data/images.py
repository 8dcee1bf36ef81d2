"""Labelled images of one size: scikit-learn's digits, pieces of photographs, or any TFDS set with
`image` and `label`."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
import tensorflow_datasets as tfds
from etils import epy
from jax.sharding import Mesh
from PIL import Image

from jaxhist import UserError, progress
from jaxhist.algorithm import Batch, State
from jaxhist.data import batches, labels, pictures, prepared
from jaxhist.data.labels import Split, split_off

with epy.lazy_imports():  # they take a second
    from sklearn import datasets


class Images(NamedTuple):
    """A data set. What is known without reading it, and how to read it."""

    shape: tuple[int, int, int]  # H, W, C
    classes: int
    load: Callable[[], dict[str, Split]]  # train, validation, test: image [N, H, W, C] uint8, label
    names: tuple[str, ...] = tuple("0123456789")  # of the classes


class Labelled(NamedTuple):
    """Labelled images as an experiment uses them: in batches to train with, and to test with."""

    shape: tuple[int, int, int]  # H, W, C of what the network sees
    classes: int
    batch: Batch  # the shapes of a training batch, see `shapes`
    train: Callable[[int, State], Batch]  # image [B, H, W, C], label [B]
    validation: Callable[[], Iterable[Batch]]  # as stored
    test: Callable[[], Iterable[Batch]]
    views: Callable[[jax.Array], jax.Array]  # stored images -> [V, B, H, W, C], seen in a test
    size: int = 500  # of a batch of validation and test
    score: str = "accuracy"  # chooses the checkpoint, on examples held out; "" chooses none


class Inputs(NamedTuple):
    """Labelled arrays. What is known without reading them, and how to read them."""

    shape: tuple[int, ...]  # of an input
    classes: int
    load: Callable[[], dict[str, Split]]  # train, validation, test: input [N, ...], label [N]

    def batch(self, size: int) -> Batch:
        """The shapes of a batch, inputs as float32."""
        return {
            "input": jax.ShapeDtypeStruct((size, *self.shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        }


def shapes(batch: int, shape: tuple[int, int, int]) -> Batch:
    """Of a training batch: image [batch, H, W, C] float32, label [batch] int32."""
    return {
        "image": jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def named(name: str, validation: int) -> Images:
    """`digits` or `pieces`, or a TFDS data set by its name.

    Raises:
      UserError: it is not there, not made of labelled images of one size, or has more classes than
        there are examples to be held out.
    """
    source = EMBEDDED[name](validation) if name in EMBEDDED else from_tfds(name, validation)
    labels.check_each("validation", validation, source.classes)
    return source


def digits(validation: int) -> Images:
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn; 360 of them to test.

    Args:
      validation: how many training examples to hold out.
    """

    @functools.cache
    def load() -> dict[str, Split]:
        bunch = datasets.load_digits()
        image = (bunch.images[..., None] * 15).astype(np.uint8)  # from 0..16
        both = {"image": image, "label": bunch.target.astype(np.int32)}
        both, test = split_off(both, 360)
        train, held_out = split_off(both, validation)
        return {"train": train, "validation": held_out, "test": test}

    return Images((8, 8, 1), 10, load)


PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut,
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "rocket": skimage.data.rocket,
    "galaxies": skimage.data.hubble_deep_field,
    "tissue": skimage.data.immunohistochemistry,
    "retina": skimage.data.retina,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "temple": lambda: datasets.load_sample_image("china.jpg"),
    "flower": lambda: datasets.load_sample_image("flower.jpg"),
}


def pieces(validation: int) -> Images:
    """4,000 pieces of 16x16 pixels, cut from ten photographs that come with scikit-image and
    scikit-learn; 800 of them to test. The label is the photograph. No two pieces overlap.

    Args:
      validation: how many training examples to hold out.
    """

    @functools.cache
    def load() -> dict[str, Split]:
        pieces = []
        for photograph in PHOTOGRAPHS.values():
            image = photograph()
            H, W = (length // 16 * 16 for length in image.shape[:2])
            squares = image[:H, :W].reshape(H // 16, 16, W // 16, 16, 3).swapaxes(1, 2)
            squares = squares.reshape(-1, 16, 16, 3)
            chosen = np.random.default_rng(0).permutation(len(squares))[:400]
            pieces.append(squares[chosen])
        label = np.repeat(np.arange(len(pieces), dtype=np.int32), 400)
        both, test = split_off({"image": np.concatenate(pieces), "label": label}, 800)
        train, held_out = split_off(both, validation)
        return {"train": train, "validation": held_out, "test": test}

    return Images((16, 16, 3), len(PHOTOGRAPHS), load, tuple(PHOTOGRAPHS))


EMBEDDED = {"digits": digits, "pieces": pieces}  # they come with the installed packages


def from_tfds(name: str, validation: int) -> Images:
    """A TFDS data set, read without TensorFlow from $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Args:
      name: such as "mnist", "cifar10", or "cifar10:3.0.2", with the splits that `labels.splits`
        wants.
      validation: how many training examples to hold out.

    Raises:
      UserError: it is not there, or not made of labelled images of one size.
    """
    builder = prepared.labelled_images(name)
    features = builder.info.features
    shape = features["image"].shape
    if None in shape:
        raise UserError(
            f"the images of data set {name!r} differ in size ({shape}); choose one of one size, or "
            "--photographs if this experiment has it"
        )

    @functools.cache
    def load() -> dict[str, Split]:
        return labels.splits(builder, lambda split: _decoded(builder, split), validation)

    label = features["label"]
    return Images(shape, label.num_classes, load, tuple(label.names))


def _decoded(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """A split in memory, decoded once and cached."""
    name, shape = builder.info.full_name, builder.info.features["image"].shape
    examples = prepared.examples(builder, split, {"image": tfds.decode.SkipDecoding()})

    def decode() -> Split:
        image = np.empty((len(examples), *shape), np.uint8)
        label = np.empty(len(examples), np.int32)
        for i in progress(range(len(examples)), f"decoding {name} {split}"):
            example = examples[i]
            with pictures.naming(f"{name} {split} {i}"):
                image[i] = _of_shape(pictures.opened(example["image"]), shape)
            label[i] = example["label"]
        return {"image": image, "label": label}

    return prepared.cached(f"{name}-{split}-upright-{prepared.checksum(builder)}", decode)


def _of_shape(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    width, height = pictures.size(image)
    if (height, width) != shape[:2]:
        raise ValueError(f"it is {height} x {width} and not {shape[0]} x {shape[1]}")
    return np.asarray(pictures.decoded(image, shape[2])).reshape(shape)


def reduced(source: Images, examples: int = 0, by: int = 1) -> Images:
    """A part of a data set, in less detail: for what is to take minutes.

    Args:
      source: the data set.
      examples: how many training examples to keep, of each label its share, always the same ones;
        0 keeps all.
      by: each square of `by` x `by` pixels becomes one, their mean.

    Raises:
      UserError: the images cannot be divided so, `examples` are fewer than the classes, or (when
        loaded) more than there are.
    """
    height, width, channels = source.shape
    if height % by or width % by:
        raise UserError(f"shrink {by} does not divide images of {height} x {width} pixels")
    if examples:
        labels.check_each("examples with labels", examples, source.classes)

    def shrink(split: Split) -> Split:
        image = split["image"].reshape(-1, height // by, by, width // by, by, channels)
        return {**split, "image": image.mean((2, 4), dtype=np.float32).round().astype(np.uint8)}

    @functools.cache
    def load() -> dict[str, Split]:
        splits = source.load()
        if examples:
            splits = {**splits, "train": split_off(splits["train"], examples)[1]}
        return {name: shrink(split) for name, split in splits.items()} if by > 1 else splits

    return source._replace(shape=(height // by, width // by, channels), load=load)


def scaled(source: Images) -> Inputs:
    """Images as rows of H W C pixels from 0 to 1, float32."""

    @functools.cache
    def load() -> dict[str, Split]:
        return {
            name: {"input": _rows(split["image"]), "label": split["label"]}
            for name, split in source.load().items()
        }

    return Inputs((math.prod(source.shape),), source.classes, load)


def whitened(source: Images) -> Inputs:
    """Images [H, W, C] whose pixels are hardly correlated and of unit variance over the training
    images, float32.

    x -> V (L + 0.01)^-1/2 V^T (x - mean), for pixels from 0 to 1 whose covariance is V L V^T. The
    0.01 keeps what hardly varies, noise, from growing.
    """

    @functools.cache
    def load() -> dict[str, Split]:
        rows = scaled(source).load()
        train = rows["train"]["input"]
        mean = train.mean(0)
        variances, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
        whiten = (vectors / np.sqrt(variances + 0.01) @ vectors.T).astype(np.float32)
        return {
            name: {**split, "input": ((split["input"] - mean) @ whiten).reshape(-1, *source.shape)}
            for name, split in rows.items()
        }

    return Inputs(source.shape, source.classes, load)


def _rows(image: np.ndarray) -> np.ndarray:
    return image.reshape(len(image), -1) / np.float32(255)


def crops(source: Images, batch: int, pad: int, mirror: bool, seed: int, mesh: Mesh) -> Labelled:
    """Small images in batches: padded, cropped back at random, mirrored, and centred (ResNet,
    section 4.2). A test sees them whole.

    Args:
      source: of the images.
      batch: examples in a training batch.
      pad: pixels added on each side before a random crop.
      mirror: half of the images: right for photographs, wrong for digits.
      seed: of the run.
      mesh: that the batches are split over.
    """

    def center(image):
        return centered(image, source.load()["train"]["image"])

    def augment(batch, key):
        crop_key, mirror_key = jax.random.split(key)
        image = random_crop(center(batch["image"]), crop_key, pad)
        if mirror:
            image = random_mirror(image, mirror_key)
        return {**batch, "image": image}

    return Labelled(
        source.shape,
        source.classes,
        shapes(batch, source.shape),
        batches.on_device(lambda: source.load()["train"], batch, seed, mesh, augment),
        validation=lambda: batches.slices(source.load()["validation"]),
        test=lambda: batches.slices(source.load()["test"]),
        views=lambda image: center(image)[None],
    )


def centered(image: jax.Array, train: np.ndarray) -> jax.Array:
    """The mean of the training images subtracted, pixel by pixel.

    Not in the paper: divided by 255, which makes no difference to batch normalization.
    """
    return (image - train.mean(0, keepdims=True, dtype=np.float32)) / 255


def random_crop(image: jax.Array, key: jax.Array, pad: int) -> jax.Array:
    """Pad with zeros on all sides, crop back to size at random. [B, H, W, C] -> the same."""
    batch, height, width, _ = image.shape
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2, batch, 1, 1), 0, 2 * pad + 1)
    rows = top + jnp.arange(height)[None, :, None]  # [B, H, 1]
    columns = left + jnp.arange(width)[None, None, :]  # [B, 1, W]
    return padded[jnp.arange(batch)[:, None, None], rows, columns]


def random_mirror(image: jax.Array, key: jax.Array) -> jax.Array:
    """Each image or, with probability 1/2, its mirror image. [B, H, W, C] -> the same."""
    mirrored = jax.random.bernoulli(key, shape=(len(image), 1, 1, 1))
    return jnp.where(mirrored, image[:, :, ::-1], image)
