"""The mesh of devices, and how state and batches lie on it.

One path for one device and for a thousand: programs are compiled by `jax.jit` over a mesh, a batch
is one global array split over the axes `data` and `fsdp`, and the compiler adds what has to be
communicated. Over `fsdp` the state is split too, each array along its longest axis that can be, and
put together where it is used (Rajbhandari et al., ZeRO, arXiv:1910.02054). Over `tensor` products
of matrices are split, by rules that stand beside a model (Shoeybi et al., Megatron-LM,
arXiv:1909.08053).
"""

import contextlib
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

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


# A pattern at the end of a parameter's path -> what its last axes are split over.
Rules = Mapping[str, tuple[str | None, ...]]
NOTHING: Rules = MappingProxyType({})
BATCH = "data", "fsdp"


@dataclass(frozen=True)
class Axes:
    """How many devices there are along each axis of the mesh."""

    data: int = 0  # 0: as many as there are devices for
    fsdp: int = 1  # the state is split over these
    tensor: int = 1  # and products of matrices over these


WHOLE = Axes()  # the state is not split


def mesh(count: int = 0, axes: Axes = WHOLE) -> Mesh | AbstractMesh:
    """The first `count` devices (0: all of them), with the axes `data`, `fsdp` and `tensor`.

    Raises:
      UserError: there are not so many, or the platform asked for does not start.
    """
    types = (AxisType.Auto,) * 3  # not Explicit: under Explicit axes flax's nn.Embed fails
    names = "data", "fsdp", "tensor"
    if isinstance(_elsewhere, int):
        return AbstractMesh(sizes(_elsewhere, axes), names, axis_types=types)
    try:
        available = _elsewhere or jax.devices()
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
    if count and jax.process_count() > 1:
        raise UserError("a job of several processes uses all devices; leave --run.devices away")
    chosen = available[: count or None]
    # An axis may be some of the chips along an axis of a torus, such as 4 of 16.
    lying = create_device_mesh(sizes(len(chosen), axes), chosen, allow_split_physical_axes=True)
    return Mesh(lying, names, axis_types=types)


_elsewhere: Sequence[jax.Device] | int = ()


@contextlib.contextmanager
def elsewhere(chips: Sequence[jax.Device] | int) -> Iterator[None]:
    """Inside, a mesh is of these devices, which programs can be compiled for but not run on; or of
    so many of which nothing more is known."""
    global _elsewhere
    _elsewhere = chips
    try:
        yield
    finally:
        _elsewhere = ()


def sizes(count: int, axes: Axes) -> tuple[int, int, int]:
    """Of the three axes of a mesh of `count` devices.

    Raises:
      UserError: it has another number of devices.
    """
    data = axes.data or count // max(axes.fsdp * axes.tensor, 1)
    found = data, axes.fsdp, axes.tensor
    if min(found) < 1 or math.prod(found) != count:
        raise UserError(
            f"{count} devices are not a mesh of data {axes.data or 'any'} x fsdp {axes.fsdp} x "
            f"tensor {axes.tensor}; choose others with --run.mesh or --run.devices"
        )
    return found


def whole(mesh: Mesh) -> NamedSharding:
    """A copy on every device: for data sets that fit."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: for batches."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def layout(mesh: Mesh, shapes: Any, rules: Rules = NOTHING) -> Any:
    """The shapes of a state, with where each of its arrays lies.

    Args:
      mesh: the devices.
      shapes: a pytree of jax.ShapeDtypeStructs.
      rules: what is split over `tensor`.

    Raises:
      UserError: no array has a rule, or one cannot be split as its rule says.
    """
    specs = jax.tree.map_with_path(
        lambda path, leaf: _spec(
            mesh, jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, rules
        ),
        shapes,
    )
    every = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    if mesh.shape["tensor"] > 1 and not any("tensor" in spec for spec in every):
        raise UserError("this model has no products to split over --run.mesh.tensor; leave it at 1")
    place = lambda leaf, spec: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
    )
    return jax.tree.map(place, shapes, specs)


def _spec(mesh: Mesh, name: str, shape: tuple[int, ...], rules: Rules) -> PartitionSpec:
    """What each axis of an array of the state is split over."""
    spec: list[str | None] = [None] * len(shape)
    for pattern, last in rules.items() if mesh.shape["tensor"] > 1 else ():
        if re.search(f"(^|/){pattern}$", name):
            spec[len(shape) - len(last) :] = last
    for axis, over in enumerate(spec):
        if over and shape[axis] % mesh.shape[over]:
            raise UserError(
                f"{name} of {shape} cannot be split over {mesh.shape[over]} along axis {axis}; "
                f"choose another --run.mesh.{over}"
            )
    free = [i for i in range(len(shape)) if not spec[i] and shape[i] % mesh.shape["fsdp"] == 0]
    if free and mesh.shape["fsdp"] > 1:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    while spec and not spec[-1]:
        spec.pop()
    return PartitionSpec(*spec)


def shardings(layout: Any) -> Any:
    """Of a layout."""
    return jax.tree.map(lambda leaf: leaf.sharding, layout)


def named(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """An array inside a model, whose axes are split so over the mesh that is set.

    Without that the compiler may choose to keep all of it on each device. Nothing happens where no
    mesh is set; and an axis that cannot be split evenly, of a small batch, is not.

    Args:
      x: the array.
      axes: for each of its axes, `BATCH`, "tensor" or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    parts = lambda over: math.prod(mesh.shape[name] for name in np.ravel(over))
    spec = [
        over if over and size % parts(over) == 0 else None
        for over, size in zip(axes, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def check_divides(mesh: Mesh | AbstractMesh, shapes: Any, parts: int = 1):
    """Raise UserError if a batch of these shapes, or each of its parts, cannot be split evenly."""
    over = math.prod(mesh.shape[name] for name in BATCH)
    for leaf in jax.tree.leaves(shapes):
        if parts < 1 or leaf.shape[0] < 1 or leaf.shape[0] % (parts * over):
            among = f"{over} devices" if parts == 1 else f"{over} devices in {parts} parts"
            raise UserError(
                f"a batch of {leaf.shape[0]} cannot be split over {among}; choose a "
                f"multiple of {max(parts, 1) * over}, or fewer devices with --run.devices"
            )


def spread(mesh: Mesh | AbstractMesh, shapes: Any) -> Any:
    """The shapes of a batch, with where each of its arrays lies."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split(mesh)), shapes
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
    return place(batch, split(mesh))


def place(arrays: Any, sharding: NamedSharding) -> Any:
    """Start to move arrays to the devices; what lies there already stays. Of several processes each
    has all of the arrays, and moves what its own devices are to have."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)

    def moved(array):
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(moved, arrays)


def gathered(mesh: Mesh, arrays: Any) -> Any:
    """All of arrays that lie on many devices, as numpy arrays."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=whole(mesh))(arrays))


def rows(mesh: Mesh, size: int) -> tuple[int, int]:
    """Where the examples of a batch of this size begin and end that this process has."""
    parts = split(mesh).addressable_devices_indices_map((size,)).values()
    bounds = [part[0].indices(size)[:2] for part in parts]
    return min(begin for begin, _ in bounds), max(end for _, end in bounds)


@contextlib.contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turn the error of a device whose memory is full into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("RESOURCE_EXHAUSTED: ")[2]
        if not reason:
            raise
        raise UserError(
            f"the memory of a device is full ({reason.splitlines()[0][:200]}); try a smaller "
            "--batch, more devices with --run.mesh.fsdp, or --remat or --parts if this experiment "
            "has them; plan says what a step needs"
        ) from error


def peak_flops(mesh: Mesh) -> float | None:
    """The FLOP/s that the mesh can reach in bfloat16; None where the device is not known."""
    peak = PEAK_FLOPS.get(mesh.devices.flat[0].device_kind)
    return peak and peak * mesh.size


def describe(mesh: Mesh) -> str:
    """Such as `8 x TPU v4`."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def machine(mesh: Mesh) -> dict[str, Any]:
    """What a run runs on: devices, processor and versions, for the header of its log."""
    packages = ("jaxhist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    here = {"devices": describe(mesh), "processor": processor(), "cores": cores()}
    return here | {"versions": versions}


def processor() -> str:
    """Its name, as the system says it."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def arithmetic() -> dict[str, Any]:
    """What the numbers of a run depend on beside its configuration and what it runs on: options of
    JAX, which anybody can set in the environment."""
    names = "default_prng_impl", "threefry_partitionable", "enable_x64", "default_matmul_precision"
    return {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
