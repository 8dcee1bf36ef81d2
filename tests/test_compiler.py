"""What some versions of jaxlib got wrong on a CPU; where one of these fails, no figure can be
trusted. `pyproject.toml` excludes the versions that are known."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from every import brief
from test_experiments import EVERY

from jaxhist import devices
from jaxhist.algorithm import keys
from jaxhist.train import Run

ROWS = """
import jax, jax.numpy as jnp
for dtype, size in ((jnp.float32, 32_769), (jnp.float64, 16_385)):
    rows = jnp.zeros((size, 3), dtype).at[:, 0].set(jnp.arange(size))
    squares = jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=dtype) @ row) ** 2))
    for of in (squares, jax.jit(squares)):
        assert of(rows)[-1] == (size - 1) ** 2, (dtype, of(rows)[-1])
"""
RANK_7 = """
import jax, jax.numpy as jnp, numpy as np
a, b = np.random.default_rng(0).normal(size=(2, 5, 1, 3, 2, 8, 8, 8)).astype(np.float32)
summed = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)
np.testing.assert_allclose(summed, np.sum(a * b, axis=3), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize("program", [ROWS, RANK_7], ids=["many rows", "seven axes"])
def test_sums_of_products_are_right(program):
    """In a process of its own, which a wrong compiler may end, and compiled as users do."""
    chosen = {"XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR"}
    environment = {k: v for k, v in os.environ.items() if k not in chosen}
    environment["JAX_ENABLE_X64"] = "1"
    arguments = [sys.executable, "-c", program]
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, (jax.__version__, process.stderr)


@pytest.fixture
def busy():
    """Other processes want the cores."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    yield
    for other in others:
        other.kill()
        other.wait()


@pytest.mark.long
@EVERY
def test_a_step_gives_the_same_bits_again_and_again(module, config, busy, monkeypatch):
    """On jax 0.11.0 some program did not, with more than one thread (jax-ml/jax 39741)."""
    brief(monkeypatch.setattr)
    experiment, key = module.build(config, Run(devices=1)), keys(0)
    state = jax.jit(experiment.init)(key.init)
    batch = devices.put(devices.mesh(1), experiment.data(0, state), experiment.batch)
    step = jax.jit(experiment.step).lower(state, batch, key.step).compile()
    bits = lambda tree: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    first = bits(step(state, batch, key.step))
    assert all(bits(step(state, batch, key.step)) == first for _ in range(100))
