"""Random views, beside Pillow, matplotlib, scipy and plain loops."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxhist import UserError
from jaxhist.data import augment


@pytest.fixture(scope="module")
def photograph():
    """[24, 32, 3] from 0 to 1, of a flower."""
    return load_sample_image("flower.jpg")[150:294:6, 200:392:6].astype(np.float32) / 255


@partial(jax.jit, static_argnums=1)
def unit(image, change, amount):
    return jnp.stack(change(tuple(jnp.moveaxis(image, -1, 0)), amount), -1)


each = partial(jax.jit, static_argnums=2)(augment.each)
scaling = partial(jax.jit, static_argnums=2)(augment.scaling)
blurring = partial(jax.jit, static_argnums=(1, 2))(augment.blurring)


def grey(image):
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


# Parts.


def test_scaling_a_part_is_pillows(photograph):
    """Also of parts that begin and end within a pixel."""
    for top, left, rows, columns in [(0, 0, 24, 32), (3.7, 5.2, 11.9, 14.1), (20.5, 0.3, 3.5, 4.0)]:
        box = (left, top, left + columns, top + rows)
        channels = [Image.fromarray(photograph[..., c]) for c in range(3)]
        want = np.stack([c.resize((32, 24), Image.Resampling.BILINEAR, box) for c in channels], -1)
        weights = scaling(top, rows, 24), scaling(left, columns, 32)
        got = np.einsum("ih,jw,hwc->ijc", *weights, photograph)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_parts_have_the_papers_areas_and_ratios():
    """Seen in an image of coordinates: scaling a part of it gives its corners."""
    H, W, N = 24, 32, 2000
    rows, columns = np.mgrid[:H, :W].astype(np.float32)
    image = np.broadcast_to(np.stack([rows, columns], -1), (N, 1, H, W, 2))
    crop = lambda image, key: augment.random_resized_crop(image, key, 0.08)
    views = np.array(each(image, jax.random.key(0), crop))[:, 0]
    # Two pixels far from the border, where nothing is cut off.
    extent = (views[:, 15, 20] - views[:, 8, 11]) / np.array([7 / H, 9 / W])
    centre = (views[:, 11, 15] + views[:, 12, 16]) / 2 + 0.5
    assert (centre - extent / 2 > -1e-3).all()
    assert (centre + extent / 2 < np.array([H, W]) + 1e-3).all()
    area, ratio = extent.prod(1) / (H * W), extent[:, 1] / extent[:, 0]
    assert 0.0799 < area.min() < 0.09 and 0.9 < area.max() < 1.001
    assert 0.749 < ratio.min() < 0.76 and 1.31 < ratio.max() < 1.334
    # Below half of the area almost everything fits, and so it is evenly distributed.
    small = area < 0.5
    assert np.isclose(np.mean(area[small] < 0.29), 0.5, atol=0.05)
    assert np.isclose(np.mean(ratio[small] < 1), 0.5, atol=0.05)
    place = ((centre - extent / 2) / (np.array([H, W]) - extent))[small]
    assert np.allclose(place.mean(0), 0.5, atol=0.04) and np.allclose(
        place.std(0), 0.289, atol=0.02
    )


def test_a_part_of_all_of_the_area_is_the_whole(photograph):
    square = jnp.asarray(photograph[:, :24])
    crop = jax.jit(lambda image, key: augment.random_resized_crop(image, key, 1.0))
    for seed in range(3):
        np.testing.assert_allclose(crop(square, jax.random.key(seed)), square, atol=1e-6)


# Colours.


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_brightness_contrast_and_saturation_are_blends(photograph, factor):
    blend = lambda towards: np.clip(towards + factor * (photograph - towards), 0, 1)
    want = {
        augment.change_brightness: blend(np.zeros_like(photograph)),
        augment.change_contrast: blend(np.full_like(photograph, grey(photograph).mean())),
        augment.change_saturation: blend(grey(photograph)[..., None]),
    }
    for change, image in want.items():
        np.testing.assert_allclose(unit(photograph, change, factor), image, atol=1e-5)


@pytest.mark.parametrize("shift", [-0.2, 0.0, 0.1, 0.5])
def test_hue_is_that_of_hsv(photograph, shift):
    photograph = photograph.copy()
    photograph[0, :4] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]
    want = np.empty_like(photograph)
    for place in np.ndindex(photograph.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*photograph[place])
        want[place] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
    np.testing.assert_allclose(unit(photograph, augment.shift_hue, shift), want, atol=1e-5)


def test_colours_are_distorted_in_any_order_as_often_as_in_the_paper(photograph):
    """Every distorted image is explained by four changes in one of the 24 orders: those that the
    key draws."""
    small, strength, N = photograph[::6, ::8], 0.5, 1000
    distort = lambda image, key: augment.colour_distortion(image, key, strength)
    image = np.broadcast_to(small, (N, 1, *small.shape))
    got = np.array(each(image, jax.random.key(0), distort))[:, 0]
    greys = np.ptp(got, axis=-1).max((1, 2)) < 1e-5
    untouched = np.abs(got - small).max((1, 2, 3)) < 1e-6
    assert np.isclose(greys.mean(), 0.2, atol=0.04)
    assert np.isclose(untouched.mean(), 0.2 * 0.8, atol=0.04)
    keys, orders = jax.random.split(jax.random.key(0), (N, 1))[:, 0], set()
    all_drawn = np.array(jax.vmap(lambda key: jax.random.uniform(key, (10,)))(keys))
    for i in np.flatnonzero(~greys & ~untouched)[:60]:
        drawn = all_drawn[i]
        want, order = small, tuple(np.argsort(drawn[:4]))
        orders.add(order)
        for kind in order:
            amount = 0.6 + 0.8 * drawn[4 + kind] if kind < 3 else 0.2 * drawn[7] - 0.1
            want = unit(want, augment.JITTER[kind], np.float32(amount))
        np.testing.assert_allclose(got[i], want, atol=1e-5)
    assert len(orders) > 15


def test_colours_cannot_be_distorted_where_there_are_none():
    with pytest.raises(UserError, match="red, green and blue"):
        augment.colour_distortion(jnp.zeros((4, 4, 1)), jax.random.key(0), 1.0)


# Blur and mirror.


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_scipys_but_at_the_border(photograph, sigma):
    radius = 2
    filtered = lambda image: scipy.ndimage.gaussian_filter(
        image, (sigma, sigma, 0), mode="constant", radius=(radius, radius, 0)
    )
    want = filtered(photograph) / filtered(np.ones_like(photograph))
    rows, columns = blurring(sigma, radius, 24), blurring(sigma, radius, 32)
    got = np.einsum("ih,jw,hwc->ijc", rows, columns, photograph)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.count_nonzero(rows[12]) <= 2 * radius + 1  # a tenth of 48 pixels


def test_half_of_the_views_are_mirrored_and_half_blurred(photograph):
    N = 400
    image = np.broadcast_to(photograph, (N, 1, *photograph.shape))
    mirrored, blurred = (
        np.array(each(image, jax.random.key(1), view))[:, 0]
        for view in (augment.random_mirror, augment.random_blur)
    )
    turned = (mirrored == photograph[:, ::-1]).all((1, 2, 3))
    assert ((mirrored == photograph).all((1, 2, 3)) ^ turned).all()
    assert np.isclose(turned.mean(), 0.5, atol=0.1)
    sharp = (blurred == photograph).all((1, 2, 3))
    assert np.isclose(sharp.mean(), 0.5, atol=0.1)


def test_views_are_independent_and_stay_in_range(photograph):
    image = np.broadcast_to(photograph[:12, :16], (8, 2, 12, 16, 3))
    distort = lambda image, key: augment.colour_distortion(image, key, 1.0)
    views = np.array(each(image, jax.random.key(0), distort))
    assert (
        len(np.unique(views.reshape(16, -1).round(3), axis=0)) >= 14
    )  # a few are left as they are
    assert views.min() >= 0 and views.max() <= 1
