"""Machines that one can rent, by the makers' data sheets, and how to compile for them from here."""

import importlib.util
import math
import re
from typing import NamedTuple

import jax

from jaxhist import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One accelerator. Its peak is in `devices.PEAK_FLOPS`."""

    kind: str  # JAX's name of it
    memory: float  # bytes
    bandwidth: float  # of that memory, bytes/s
    links: float  # to other chips, all of them together, one way, bytes/s
    clock: float = 0.0  # cycles/s of a TPU, from its peak at 2 FLOPs for each cell and cycle


CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 1.228e12, 300e9, 1.05e9),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 0.819e12, 200e9, 1.5e9),
    "v5p": Chip("TPU v5", 95 * GIB, 2.765e12, 600e9, 1.75e9),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1.64e12, 400e9, 1.75e9),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 80e9, 2.039e12, 300e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 80e9, 3.35e12, 450e9),
    "h200": Chip("NVIDIA H200", 141e9, 4.8e12, 450e9),
}


class Slice(NamedTuple):
    chip: Chip
    count: int
    devices: list[jax.Device] | None  # to compile for; None: nothing here can

    @property
    def mesh_of(self) -> list[jax.Device] | int:
        """What `devices.elsewhere` takes."""
        return self.devices or self.count


def named(topology: str) -> Slice:
    """Such as `v5p:4x4x8`, or `h100:8`.

    Raises:
      UserError: there is no such chip, or no slice of that shape.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(
            f"no topology {topology!r}; write a chip and the shape of its slice, such as v5e:4x4 "
            f"or h100:8; the chips are {', '.join(CHIPS)}"
        )
    chip, count = CHIPS[name], math.prod(map(int, shape.split("x")))
    if not chip.clock or not importlib.util.find_spec("libtpu"):
        return Slice(chip, count, None)
    from jax.experimental import topologies  # imports libtpu

    try:
        host = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
        devices = topologies.get_topology_desc(topology, platform="tpu", **host).devices
    except Exception as error:  # of several kinds, none of them documented
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"there is no slice {topology}: {reason}") from error
    return Slice(chip, len(devices), devices)
