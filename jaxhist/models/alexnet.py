"""ImageNet Classification with Deep Convolutional Neural Networks.

Alex Krizhevsky, Ilya Sutskever, Geoffrey E. Hinton, 2012. NIPS 25.
"""

import jax
import jax.numpy as jnp


def local_response_normalization(
    a: jax.Array, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """b_i = a_i / (k + alpha sum_j a_j^2)^beta, j over the n channels around i (section 3.3).

    [..., C] -> the same. The sum stops at the first and the last channel. Alpha is not divided by
    n, as it is in some libraries.
    """
    channels = a.shape[-1]
    squares = jnp.pad(a**2, [(0, 0)] * (a.ndim - 1) + [(n // 2, n // 2)])
    total = sum(squares[..., j : j + channels] for j in range(n))
    return a / (k + alpha * total) ** beta
