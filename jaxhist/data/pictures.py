"""Encoded pictures as pixels, the same way for all data sets: upright, 8 bits, transparency on
white."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

from jaxhist import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels


@contextlib.contextmanager
def naming(example: str) -> Iterator[None]:
    """Say which example it is that cannot be read."""
    try:
        yield
    except (OSError, SyntaxError) as error:  # Pillow's for what it cannot read
        reason = str(error).split(" <")[0]  # without "<_io.BytesIO object at 0x7f...>"
        raise UserError(
            f"the image of {example} is damaged: {reason}; prepare the data set again"
        ) from error
    except (ValueError, Image.DecompressionBombError) as error:  # for what it does not want to read
        reason = " ".join(str(error).split())
        raise UserError(
            f"the image of {example} cannot be used: {reason}; leave it out, and prepare the data "
            "set again"
        ) from error


def opened(encoded: bytes) -> Image.Image:
    """A picture of which no more than the header is read yet."""
    return Image.open(io.BytesIO(encoded))


def size(image: Image.Image) -> tuple[int, int]:
    """Width and height when it is upright."""
    return image.size[::-1] if _lies(image) else image.size


def decoded(image: Image.Image, channels: int = 3, least: tuple[int, int] = (0, 0)) -> Image.Image:
    """The pixels, upright.

    Args:
      image: of `opened`.
      channels: 1, grey; 3, red, green and blue; 4, these and how opaque it is. What is not opaque
        lies on white where there are fewer.
      least: width and height; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster,
        where that is no smaller.

    Raises:
      ValueError: the pixels are of a kind that is no picture.
    """
    if least != (0, 0):
        image.draft(None, least[::-1] if _lies(image) else least)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # else all are copied
    if image.mode.startswith(("I", "F")):
        image = _of_16_bits(image)
    mode = MODES[channels]
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _lies(image: Image.Image) -> bool:
    """Whether it is turned by a quarter to be upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) >= 5


def _of_16_bits(image: Image.Image) -> Image.Image:
    value = np.asarray(image)
    if value.dtype.kind == "f" or value.min() < 0 or value.max() > 65535:
        raise ValueError(f"its pixels are neither of 8 nor of 16 bits (mode {image.mode})")
    clear = value == image.info.get("transparency", -1)
    return Image.fromarray(np.where(clear, 255, (np.int32(value) + 128) // 257).astype(np.uint8))
