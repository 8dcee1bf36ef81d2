"""How fast photographs become batches: jaxhist's pipeline beside a plain loop.

python -m jaxhist.data.speed imagenet_sample [--seconds 60] [--output results/pipeline.json]

Both read the split train, and make crops of 224 pixels at a random scale (ResNet, section 3.4). The
plain loop is what one writes first: Pillow decodes, scales the whole image and cuts, in one thread.
They take turns in one process, so that what else the machine does slows both. "Per core" is per
second of processor time, of all threads together.
"""

import io
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import jax
import numpy as np
import tyro
from etils import epath
from PIL import Image

from jaxhist import UserError, devices, files
from jaxhist.data import batches, photographs

ROUNDS = 9  # each measures both
BATCH = 64


class Speed(NamedTuple):
    """In images per second."""

    overall: float
    per_core: float


def plain(train: Sequence[photographs.Photograph], seed: int, seconds: float) -> Speed:
    """Of the plain loop."""
    random = np.random.default_rng(seed)
    images, start, worked = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < seconds:
        image = Image.open(io.BytesIO(train[random.integers(len(train))].jpeg)).convert("RGB")
        scale = random.integers(256, 481) / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = random.integers(0, (image.width - 223, image.height - 223))
        np.asarray(image.crop((left, top, left + 224, top + 224)))
        images += 1
    return Speed(images / (time.perf_counter() - start), images / (time.thread_time() - worked))


def pipeline(train: Sequence[photographs.Photograph], seed: int, seconds: float) -> Speed:
    """Of the pipeline, up to batches on the device. What is counted is the views that its threads
    make, since they work ahead of the batches."""
    views = []

    def view(photograph, random):
        views.append(None)
        return {"image": photographs.scale_jitter(photograph, random), "label": photograph.label}

    mesh = devices.mesh()
    data = batches.streamed(lambda: train, view, BATCH, seed, mesh, lambda batch, key: batch)
    jax.block_until_ready(data(0, None))  # compiles
    before, start, worked, step = len(views), time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        step += 1
        jax.block_until_ready(data(step, None))
    images = len(views) - before
    return Speed(images / (time.perf_counter() - start), images / (time.process_time() - worked))


def main(name: tyro.conf.Positional[str], seconds: float = 60, output: str = ""):
    """How fast photographs become batches: this pipeline beside a plain loop.

    Args:
      name: a TFDS set of photographs, such as imagenet_sample.
      seconds: for all rounds together.
      output: a JSON file to write.
    """
    if seconds <= 0:
        raise UserError(f"seconds is {seconds}; it must be more than 0")
    train = photographs.from_tfds(name).load("train")
    plain(train, 0, 0.5)  # what is read first comes from the disk
    loops, pipelines = [], []
    for seed in range(ROUNDS):
        loops.append(plain(train, seed, seconds / ROUNDS / 2))
        pipelines.append(pipeline(train, seed, seconds / ROUNDS / 2))
    ratios = [ours.per_core / loop.per_core for ours, loop in zip(pipelines, loops, strict=True)]
    measured = {
        "plain loop": spread([speed.overall for speed in loops]),
        "plain loop, per core": spread([speed.per_core for speed in loops]),
        "pipeline": spread([speed.overall for speed in pipelines]),
        "pipeline, per core": spread([speed.per_core for speed in pipelines]),
        "ratio, per core": spread(ratios),
    }
    print(f"images per second on {devices.cores()} cores, median of {ROUNDS} rounds")
    for label, of in measured.items():
        print(f"{label:22}{of['median']:10.2f}  ({of['lowest']:.2f} to {of['highest']:.2f})")
    if output:
        versions = {package: version(package) for package in ("pillow", "grain")}
        machine = {**versions, **devices.machine(devices.mesh())}
        result = {"data": name, "rounds": ROUNDS, "seconds": seconds, **machine, **measured}
        path = epath.Path(output)
        with files.failing_in_one_line(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_durably(path, json.dumps(result, indent=2) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Over the rounds."""
    lowest, median, highest = (round(float(v), 3) for v in np.quantile(values, (0, 0.5, 1)))
    return {"lowest": lowest, "median": median, "highest": highest}


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m jaxhist.data.speed")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
