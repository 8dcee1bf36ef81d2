"""Images of every kind that Pillow writes, on all paths."""

import numpy as np
import pytest
import sets
import tensorflow_datasets as tfds
from PIL import Image, PngImagePlugin

from jaxhist import UserError
from jaxhist.data import images, photographs, pictures

SIDE = 256
rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.uint8)
COLOURS = np.stack([rows, columns, rows // 2 + columns // 2], -1)
GREY = COLOURS[..., 0]
CLEAR = columns >= 128  # the right half
ON_WHITE = np.where(CLEAR[..., None], 255, COLOURS)
three = lambda grey: np.repeat(grey[..., None], 3, -1)


def opaque(*channels):
    return np.stack([*channels, np.where(CLEAR, 0, 255).astype(np.uint8)], -1)


def turned(orientation, form):
    """What a camera stores that was held so."""
    turns = {3: 180, 6: 90, 8: 270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(COLOURS).rotate(turns[orientation])
    return sets.file(image, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))


def see_through_palette():
    image = Image.fromarray(COLOURS // 64 * 64).quantize(255)
    colours = np.reshape(image.getpalette(), (-1, 3))
    palette = Image.fromarray(np.where(CLEAR, 255, image))
    palette.putpalette(np.pad(colours, ((0, 256 - len(colours)), (0, 0))).ravel().tolist())
    return sets.file(palette, "PNG", transparency=255)


def clear_white(pixels):
    return np.where(CLEAR[..., None], 255, pixels)


WIDE = GREY.astype(np.uint16) * 257
KINDS = {
    "colours": (sets.file(COLOURS), COLOURS),
    "colours, TIFF": (sets.file(COLOURS, "TIFF"), COLOURS),
    "colours, BMP": (sets.file(COLOURS, "BMP"), COLOURS),
    "colours, WebP": (sets.file(COLOURS, "WEBP", lossless=True), COLOURS),
    "grey": (sets.file(GREY), three(GREY)),
    "two colours": (sets.file(Image.fromarray(GREY).convert("1")), None),
    "16 bits": (sets.file(WIDE), three(GREY)),
    "16 bits, TIFF": (sets.file(WIDE, "TIFF"), three(GREY)),
    "32 bits that hold 16": (sets.file(WIDE.astype(np.int32), "TIFF"), three(GREY)),
    "palette": (sets.file(Image.fromarray(GREY).convert("P")), three(GREY)),
    "palette, GIF": (sets.file(GREY, "GIF"), three(GREY)),
    "palette, transparent": (see_through_palette(), clear_white(COLOURS // 64 * 64)),
    "transparent": (sets.file(opaque(*np.moveaxis(COLOURS, -1, 0))), ON_WHITE),
    "transparent, WebP": (
        sets.file(opaque(*np.moveaxis(COLOURS, -1, 0)), "WEBP", lossless=True, exact=True),
        ON_WHITE,
    ),
    "grey, transparent": (sets.file(opaque(GREY)), clear_white(three(GREY))),
    "for print": (sets.file(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=95), COLOURS),
    **{
        f"turned {orientation}, {form}": (turned(orientation, form), COLOURS)
        for orientation in (3, 6, 8)
        for form in ("JPEG", "PNG")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_what_they_are(kind):
    stored, want = KINDS[kind]
    if want is None:
        want = np.asarray(Image.open(stored).convert("RGB"))
    photograph = photographs.Photograph(stored.getvalue(), np.int32(0), "train 0")
    square = photographs.central_square(photograph, SIDE).astype(int)
    whole = images._of_shape(pictures.opened(stored.getvalue()), (SIDE, SIDE, 3)).astype(int)
    for got in (square, whole):
        assert np.abs(got - want).mean() < 2 and got.shape == want.shape
        if "JPEG" not in kind and kind != "for print":
            np.testing.assert_array_equal(got, want)


def test_as_many_channels_as_a_set_has():
    stored = sets.file(opaque(*np.moveaxis(COLOURS, -1, 0))).getvalue()
    channels = lambda count: np.asarray(pictures.decoded(pictures.opened(stored), count))
    np.testing.assert_array_equal(channels(4), opaque(*np.moveaxis(COLOURS, -1, 0)))
    assert channels(1).shape == (SIDE, SIDE) and (channels(1)[CLEAR] == 255).all()


def with_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2**21, zip=True)
    return sets.file(COLOURS, pnginfo=text)


@pytest.mark.parametrize(
    "stored, says",
    [
        (sets.file(GREY.astype(np.float32), "TIFF"), "its pixels are neither of 8 nor of 16 bits"),
        (sets.file(COLOURS[1:]), "it is 255 x 256 and not 256 x 256"),
        (with_text(), "Decompressed data too large for PngImagePlugin"),
        (sets.file(Image.new("1", (20_000, 10_000))), "could be decompression bomb"),
    ],
    ids=["float", "another size", "text", "200 megapixels"],
)
def test_an_image_that_cannot_be_used_is_named(stored, says, data_sets):
    image = tfds.features.Image(shape=(SIDE, SIDE, 3))
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=2)}
    examples = [{"image": stored, "label": 0}]
    sets.write(data_sets, "tiny", features, train=examples, test=examples)
    said = f"the image of tiny/1.0.0 train 0 cannot be used: .*{says}.*; leave it out"
    with pytest.raises(UserError, match=said) as raised:
        images.from_tfds("tiny", 1).load()
    assert "\n" not in str(raised.value)
