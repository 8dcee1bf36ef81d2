"""The mesh of devices, and how state and batches lie on it.

One path for one device and for a thousand: programs are compiled by `jax.jit` over a mesh, a batch
is one global array split over the axis `data`, and the compiler adds what has to be communicated.
"""

import platform
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxhist import UserError

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets, by JAX's name of its kind.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # JAX's device is a core, two to a chip
    "TPU v3": 61.5e12,  # likewise
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def mesh(count: int = 0) -> Mesh:
    """The first `count` devices (0: all of them) along the axis `data`.

    Raises:
      UserError: there are not so many, or the platform asked for does not start.
    """
    try:
        available = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a platform is not built in
        raise UserError(
            f"no such device: JAX_PLATFORMS={jax.config.jax_platforms} does not start here "
            f"({' '.join(str(error).split()) or 'not installed'}); choose another or unset it"
        ) from error
    if not 0 <= count <= len(available):
        raise UserError(
            f"no such device: {count} asked for by --run.devices, "
            f"but there are {len(available)} of kind {available[0].device_kind!r}"
        )
    chosen = available[: count or None]
    # Auto, not Explicit: under Explicit axes flax's nn.Embed fails.
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def whole(mesh: Mesh) -> NamedSharding:
    """A copy on every device: for states and for data sets that fit."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: for batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def layout(mesh: Mesh, shapes: Any) -> Any:
    """The shapes of a state, with where each of its arrays lies."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole(mesh)), shapes
    )


def check_divides(mesh: Mesh, shapes: Any):
    """Raise UserError if a batch of these shapes cannot be split evenly."""
    for leaf in jax.tree.leaves(shapes):
        if leaf.shape[0] < 1 or leaf.shape[0] % mesh.size:
            raise UserError(
                f"a batch of {leaf.shape[0]} cannot be split over {mesh.size} devices; choose a "
                f"multiple of {mesh.size}, or fewer devices with --run.devices"
            )


def put(mesh: Mesh, batch: Any, shapes: Any) -> Any:
    """Start to move a batch to the devices. Where it lies there already, nothing happens.

    Raises:
      UserError: the batch does not have the shapes that the experiment announced.
    """
    want = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
    have = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)
    if want != have:
        raise UserError(
            f"wrong shape: the experiment wants batches of {want}, the data gives {have}"
        )
    return jax.device_put(batch, split(mesh))


def peak_flops(mesh: Mesh) -> float | None:
    """The FLOP/s that the mesh can reach in bfloat16; None where the device is not known."""
    peak = PEAK_FLOPS.get(mesh.devices.flat[0].device_kind)
    return peak and peak * mesh.size


def describe(mesh: Mesh) -> str:
    """Such as `8 x TPU v4`."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def machine(mesh: Mesh) -> dict[str, Any]:
    """What a run runs on: devices and versions, for the header of its log."""
    packages = ("jaxhist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {"devices": describe(mesh), "versions": versions}
