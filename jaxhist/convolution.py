"""A convolution that is fast on CPU too: a drop-in for `jax.lax.conv_general_dilated`.

XLA's CPU backend is slow in two cases that a small ResNet consists of. It computes the gradient
with respect to a kernel as a convolution whose window is the whole image, after it has transposed
both of its operands: more than half of a ResNet-20's step on CIFAR-10. And it is ten to forty times
slower than it could be where the image is smaller than the window, as in the last stage on images
of 8x8. Here both are products of matrices; docs/speed.md has the figures. On any other backend, and
for whatever is not spelled out below, everything is XLA's own.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

IMAGES = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC


def convolve(x, kernel, window_strides, padding, dimension_numbers=IMAGES, **options):
    """`jax.lax.conv_general_dilated`, to be given to `nn.Conv(conv_general_dilated=...)`."""
    native = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        dimension_numbers=dimension_numbers,
        **options,
    )
    shape = jax.eval_shape(native, x, kernel).shape
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    plain = (
        dimension_numbers == IMAGES
        and shape[1:3] == x.shape[1:3]
        and {*window_strides, *dilations} == {1}
        and options.get("feature_group_count", 1) == 1
        and x.dtype == kernel.dtype in (jnp.float32, jnp.float64)
    )
    if not plain:
        return native(x, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], window_strides, padding)
    if any(image < window for image, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)):
        ours = partial(product_of_patches, padding=padding)
        return lax.platform_dependent(x, kernel, cpu=ours, default=native)

    @jax.custom_vjp
    def convolution(x, kernel):
        return native(x, kernel)

    def backward(operands, gradient):
        x, kernel = operands
        (to_x,) = jax.linear_transpose(lambda x: native(x, kernel), x)(gradient)
        to_kernel = lax.platform_dependent(
            x,
            gradient,
            cpu=partial(kernel_gradient, size=kernel.shape[:2], padding=padding),
            default=lambda x, gradient: jax.linear_transpose(lambda k: native(x, k), kernel)(
                gradient
            )[0],
        )
        return to_x, to_kernel

    convolution.defvjp(lambda x, kernel: (native(x, kernel), (x, kernel)), backward)
    return convolution(x, kernel)


def convolve_small(x, kernel, window_strides, padding, dimension_numbers=IMAGES, **options):
    """`jax.lax.conv_general_dilated` with a stride of 1, to be given to `nn.Conv` where images and
    windows are small. On CPU it is a product of matrices, which is as fast in a loop as outside."""
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], window_strides, padding)
    native = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        dimension_numbers=dimension_numbers,
        **options,
    )
    ours = partial(product_of_patches, padding=pads)
    return lax.platform_dependent(x, kernel, cpu=ours, default=native)


def product_of_patches(x, kernel, padding):
    """A convolution with a stride of 1, [B, H, W, C] -> [B, H', W', O], as a product of matrices:
    every pixel's window, laid out in its channels, times the kernel."""
    rows, columns, C, O = kernel.shape  # noqa: E741
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    H, W = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    windows = [x[:, i : i + H, j : j + W] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(windows, -1) @ kernel.reshape(rows * columns * C, O)


def kernel_gradient(x, gradient, size, padding):
    """The gradient with respect to the kernel of a convolution that keeps the image's size.

    dK[i, j, c, o] = sum over b, h, w of x[b, h + i - top, w + j - left, c] gradient[b, h, w, o]

    The shifts by j are laid side by side in the channels of x and the shifts by i in those of the
    gradient, so that both grow by the kernel's width only; the sum is then a product of matrices.

    Args:
      x: [B, H, W, C].
      gradient: [B, H, W, O], with respect to the convolution's output.
      size: rows and columns of the kernel.
      padding: of x, ((top, bottom), (left, right)).

    Returns:
      [rows, columns, C, O].
    """
    (B, H, W, C), O = x.shape, gradient.shape[-1]  # noqa: E741
    (rows, columns), ((top, bottom), horizontal) = size, padding
    x = jnp.pad(x, ((0, 0), (0, 0), horizontal, (0, 0)))
    x = jnp.concatenate([x[:, :, j : j + W] for j in range(columns)], -1)
    # Row h of x meets row h - i + top of the gradient.
    gradient = jnp.pad(gradient, ((0, 0), (bottom, top), (0, 0), (0, 0)))
    shifts = [slice(rows - 1 - i, rows - 1 - i + H) for i in range(rows)]
    gradient = jnp.concatenate([gradient[:, shift] for shift in shifts], -1)
    product = gradient.reshape(B * H * W, rows * O).T @ x.reshape(B * H * W, columns * C)
    return product.reshape(rows, O, columns, C).transpose(0, 2, 3, 1)


def halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of 5x5 with a stride of 2, padding "SAME". [B, 2H, 2W, C] -> [B, H, W, O]

    On CPU it is four convolutions with a stride of 1, one for each parity of the input's row and
    column, of the parts of the kernel that meet them: `convolve` has a fast gradient for these.
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    native = partial(
        lax.conv_general_dilated, window_strides=(2, 2), padding="SAME", dimension_numbers=numbers
    )

    def by_parity(x, kernel):
        # Row i is made of the rows 2i - 1 to 2i + 3.
        parts = [(slice(1, None, 2), (0, 1)), (slice(0, None, 2), (1, 1))]
        return sum(
            convolve(x[:, p::2, q::2], kernel[rows, columns], (1, 1), (vertical, horizontal))
            for p, (rows, vertical) in enumerate(parts)
            for q, (columns, horizontal) in enumerate(parts)
        )

    return lax.platform_dependent(x, kernel, cpu=_unless_few(by_parity, native), default=native)


def double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed convolution of 5x5 with a stride of 2, padding "SAME".
    [B, H, W, C] -> [B, 2H, 2W, O]

    On CPU it is four convolutions with a stride of 1, one for each parity of the output's row and
    column.
    """
    native = partial(lax.conv_transpose, strides=(2, 2), padding="SAME")

    def by_parity(x, kernel):
        B, H, W, _ = x.shape
        # Row 2m is made of the rows m - 1 and m, row 2m + 1 of the rows m - 1, m and m + 1.
        parts = [(slice(1, None, 2), (1, 0)), (slice(0, None, 2), (1, 1))]
        rows = [
            jnp.stack([convolve(x, kernel[r, c], (1, 1), (above, left)) for c, left in parts], 3)
            for r, above in parts
        ]
        return jnp.stack(rows, 2).reshape(B, 2 * H, 2 * W, -1)

    return lax.platform_dependent(x, kernel, cpu=_unless_few(by_parity, native), default=native)


def _unless_few(ours, native):
    """Where channels are few, XLA's own is as fast."""
    return lambda x, kernel: (ours if min(kernel.shape[2:]) > 4 else native)(x, kernel)
