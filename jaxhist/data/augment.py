"""Random views of images, made on the devices: SimCLR, appendix A.

Every function takes one image [H, W, C] of pixels from 0 to 1 and a key; `each` maps them over a
batch with a key for each view. All shapes are static: to cut out a part and scale it, and to blur,
are two products, of a matrix of weights for the rows and one for the columns.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxhist import UserError
from jaxhist.algorithm import Batch, Key, State
from jaxhist.data import batches
from jaxhist.data.images import Images


class Views(NamedTuple):
    """Labelled images, and random views of them to train with."""

    shape: tuple[int, int, int]  # H, W, C of a view
    names: tuple[str, ...]  # of the classes
    batch: Batch  # the shapes of a training batch, see `shapes`
    train: Callable[[int, State], Batch]  # image [B, V, H, W, C] from 0 to 1, label [B]
    whole: Callable[[str], Iterable[Batch]]  # of a split: image [B, H, W, C] uint8, label [B]
    size: int = 500  # of a batch of `whole`


def shapes(batch: int, views: int, shape: tuple[int, int, int]) -> Batch:
    """Of a training batch: image [batch, views, H, W, C] float32, label [batch] int32."""
    return {
        "image": jax.ShapeDtypeStruct((batch, views, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def each(image: jax.Array, key: Key, view: Callable[[jax.Array, Key], jax.Array]) -> jax.Array:
    """A random view of each image, all independent. [B, V, H, W, C] -> the same"""
    return jax.vmap(jax.vmap(view))(image, jax.random.split(key, image.shape[:2]))


def small_images(
    source: Images,
    labelled: Images,
    batch: int,
    count: int,
    view: Callable[[jax.Array, Key], jax.Array],
    seed: int,
    mesh: Mesh,
) -> Views:
    """Small images in batches of views.

    Args:
      source: of the images.
      labelled: those of them to train with.
      batch: images in a training batch.
      count: views of each of them.
      view: makes one, see `each`.
      seed: of the run.
      mesh: that the batches are split over.
    """

    def prepare(batch, key):
        image = jnp.stack(count * [batch["image"] / 255], 1)
        return {**batch, "image": each(image, key, view)}

    return Views(
        source.shape,
        source.names,
        shapes(batch, count, source.shape),
        batches.on_device(lambda: labelled.load()["train"], batch, seed, mesh, prepare),
        whole=lambda split: batches.slices(source.load()[split]),
    )


def view(image: jax.Array, key: Key, area: float, mirror: bool, strength: float) -> jax.Array:
    """A part of at least this share of the area, perhaps mirrored, its colours distorted."""
    crop_key, mirror_key, colour_key = jax.random.split(key, 3)
    image = random_resized_crop(image, crop_key, area)
    if mirror:
        image = random_mirror(image, mirror_key)
    return colour_distortion(image, colour_key, strength) if strength else image


def random_resized_crop(image: jax.Array, key: Key, smallest: float) -> jax.Array:
    """A random part of the image, scaled to the size of the whole.

    Args:
      image: [H, W, C].
      key: of the part.
      smallest: the part of the area that is the least, at most 1. Its aspect ratio is from 3/4 to
        4/3. What does not fit is drawn anew; after ten times it is the central square.
    """
    height, width, _ = image.shape
    # Not in the paper: the ratio's logarithm is evenly distributed, as in `photographs`.
    areas, ratios, place = jnp.split(jax.random.uniform(key, (22,)), (10, 20))
    area = height * width * (smallest + (1 - smallest) * areas)
    ratio = (3 / 4) ** (1 - 2 * ratios)
    rows, columns = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
    fits = (rows <= height) & (columns <= width)
    first, side = jnp.argmax(fits), min(height, width)
    rows, columns = (jnp.where(fits.any(), x[first], side) for x in (rows, columns))
    top, left = jnp.stack([height - rows, width - columns]) * jnp.where(fits.any(), place, 0.5)
    return _products(scaling(top, rows, height), scaling(left, columns, width), image)


def scaling(begin: jax.Array, extent: jax.Array, length: int) -> jax.Array:
    """The matrix [length, length] that scales a part of `length` pixels to all of them.

    Bilinear: a pixel of the result is the weighted mean of the two that are nearest to its centre,
    seen in the whole. A part is never larger than the whole, so nothing needs to be smoothed.
    """
    pixels = jnp.arange(length) + 0.5
    centre = begin + pixels * (extent / length)
    weights = jnp.maximum(1 - jnp.abs(pixels[None, :] - centre[:, None]), 0)
    return weights / weights.sum(1, keepdims=True)


def random_mirror(image: jax.Array, key: Key) -> jax.Array:
    """The image or, with probability 1/2, its mirror image."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def colour_distortion(image: jax.Array, key: Key, strength: float) -> jax.Array:
    """Appendix A: colour jitter with probability 0.8, then grey with probability 0.2.

    Args:
      image: [H, W, 3].
      key: of all of it.
      strength: s. Brightness, contrast and saturation are multiplied by 1 - 0.8 s to 1 + 0.8 s, at
        least by 0, and the hue moves by at most 0.2 s of the circle, one after the other in a
        random order.

    Raises:
      UserError: the image is not of three colours.
    """
    if image.shape[-1] != 3:
        raise UserError(
            f"colours are distorted of images of red, green and blue, and this has "
            f"{image.shape[-1]} channel; choose a strength of 0"
        )
    places, drawn, jitters, greys = jnp.split(jax.random.uniform(key, (10,)), (4, 8, 9))
    low = jnp.array([*3 * [max(0.0, 1 - 0.8 * strength)], -0.2 * strength])
    high = jnp.array([*3 * [1 + 0.8 * strength], 0.2 * strength])
    amounts = low + (high - low) * drawn

    def change(planes, kind):
        return jax.lax.switch(kind, JITTER, planes, amounts[kind]), None

    planes = tuple(jnp.moveaxis(image, -1, 0))
    jittered, _ = jax.lax.scan(change, planes, jnp.argsort(places))
    planes = [jnp.where(jitters < 0.8, *both) for both in zip(jittered, planes, strict=True)]
    return jnp.stack([jnp.where(greys < 0.2, brightness(planes), one) for one in planes], -1)


# Red, green and blue as three planes [H, W], which the CPU takes four times faster than the image.
Planes = tuple[jax.Array, jax.Array, jax.Array]


def brightness(planes: Planes) -> jax.Array:
    """How bright each pixel is (ITU-R BT.601). [H, W]"""
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def change_brightness(planes: Planes, factor: jax.Array) -> Planes:
    """0 makes black, 1 nothing, 2 twice as bright."""
    return _away_from(jnp.zeros(()), planes, factor)


def change_contrast(planes: Planes, factor: jax.Array) -> Planes:
    """0 makes one grey, of the image's mean brightness; 1 nothing."""
    return _away_from(jnp.mean(brightness(planes)), planes, factor)


def change_saturation(planes: Planes, factor: jax.Array) -> Planes:
    """0 makes every pixel as grey as it is bright; 1 nothing."""
    return _away_from(brightness(planes), planes, factor)


def _away_from(grey: jax.Array, planes: Planes, factor: jax.Array) -> Planes:
    return tuple(jnp.clip(grey + factor * (plane - grey), 0, 1) for plane in planes)


def shift_hue(planes: Planes, shift: jax.Array) -> Planes:
    """Move the hue by a part of the circle; value and saturation (of HSV) stay."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    from_green = jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixth = jnp.where(value == red, (green - blue) / divisor, from_green) + 6 * shift

    def colour(offset):
        """The value, less as much of the chroma as the hue is away from this colour."""
        k = offset + sixth
        k = k - 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return colour(5), colour(3), colour(1)


JITTER = (change_brightness, change_contrast, change_saturation, shift_hue)


def random_blur(image: jax.Array, key: Key) -> jax.Array:
    """Appendix A: with probability 1/2 a Gaussian blur, sigma between 0.1 and 2 pixels, with a
    kernel of a tenth of the image's height."""
    blurs, place = jax.random.uniform(key, (2,))
    sigma = 0.1 + 1.9 * place
    height, width, _ = image.shape
    radius = height // 10 // 2
    blurred = _products(blurring(sigma, radius, height), blurring(sigma, radius, width), image)
    return jnp.where(blurs < 0.5, blurred, image)


def blurring(sigma: jax.Array, radius: int, length: int) -> jax.Array:
    """The matrix [length, length] of a Gaussian over 2 radius + 1 pixels.

    Not in the paper: what lies outside the image does not count, so its border is not darker.
    """
    pixels = jnp.arange(length)
    distance = jnp.abs(pixels[None, :] - pixels[:, None])
    weights = jnp.where(distance <= radius, jnp.exp(-((distance / sigma) ** 2) / 2), 0)
    return weights / weights.sum(1, keepdims=True)


def _products(rows: jax.Array, columns: jax.Array, image: jax.Array) -> jax.Array:
    """[H, H] and [W, W] times an image [H, W, C]."""
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image)
