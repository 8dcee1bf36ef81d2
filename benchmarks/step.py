"""Time a preset's training step beside its PyTorch twin's, taking turns, and write the ratios.

All run in one process, never two at once: a round is one step of each, and a ratio is that of a
round, so that whatever else slows the machine slows both.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch
from torch import nn

from jaxhist import devices, tell
from jaxhist.algorithm import keys
from jaxhist.train import Experiment, Run

PAUSE = 0.01  # seconds before each step: OpenMP's threads wait actively for a while after one

Step = Callable[[], None]  # takes one step and waits for its end


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    image, label = experiment.batch["image"], experiment.batch["label"]
    return {
        "image": draw.normal(size=image.shape).astype(np.float32),
        "label": draw.integers(0, 10, label.shape, dtype=np.int32),
    }


def jax_step(experiment: Experiment, batch: dict[str, np.ndarray]) -> Step:
    """Compiled as the trainer compiles it."""
    mesh, key = devices.mesh(1), keys(0)
    batch = devices.put(mesh, batch, experiment.batch)
    state = jax.jit(experiment.init, out_shardings=devices.whole(mesh))(key.init)
    step = jax.jit(experiment.step, donate_argnums=0, out_shardings=devices.whole(mesh))
    step = step.lower(state, batch, key.step).compile()

    def run():
        nonlocal state
        state, metrics = step(state, batch, key.step)
        jax.block_until_ready((state, metrics))

    return run


def torch_step(model: nn.Module, batch, memory_format: torch.memory_format, compiled: bool) -> Step:
    """Cross-entropy, and SGD with momentum 0.9 and weight decay 1e-4."""
    model = model.to(memory_format=memory_format).train()
    image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    image = image.contiguous(memory_format=memory_format)
    label = torch.from_numpy(batch["label"]).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(model) if compiled else model

    def run():
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(image), label).backward()
        optimizer.step()

    return run


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]}


def compare(steps: dict[str, Step], rounds: int) -> dict:
    """Seconds of each step in each round, and JAX's over each other's."""
    for run in steps.values():
        for _ in range(3):
            run()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            seconds[name].append(round(time.perf_counter() - start, 5))
    others = [name for name in steps if name != "jax"]
    ratios = {
        name: [a / b for a, b in zip(seconds["jax"], seconds[name], strict=True)] for name in others
    }
    return {
        "ratio": {f"jax / {name}": spread(values) for name, values in ratios.items()},
        # A quiet moment of each: what to read where the machine was shared, for PyTorch's threads
        # suffer more from others than XLA's.
        "ratio_of_fastest": {
            f"jax / {name}": round(min(seconds["jax"]) / min(seconds[name]), 4) for name in others
        },
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds": seconds,
    }


def main(name: str, build: Callable, presets: dict, twins: dict[str, Callable[[], nn.Module]]):
    """The command line of a file of twins; writes results/benchmark-NAME-PRESET.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=twins)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=0, help="0: the preset's")
    parser.add_argument("--compiled", action="store_true", help="beside torch.compile too")
    options = parser.parse_args()
    config = presets[options.preset]
    config = replace(config, batch=options.batch or config.batch)
    experiment = build(config, Run(devices=1))
    batch = random_batch(experiment)

    layouts = {"torch": torch.contiguous_format, "torch channels_last": torch.channels_last}
    steps = {"jax": jax_step(experiment, batch)}
    for layout, memory_format in layouts.items():
        steps[layout] = torch_step(twins[options.preset](), batch, memory_format, False)
        if options.compiled:
            compiled = torch_step(twins[options.preset](), batch, memory_format, True)
            steps[f"{layout} compiled"] = compiled
    load = os.getloadavg()[0]
    result = {
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}",
        "date": time.strftime("%F"),
        "batch": config.batch,
        "machine": {
            **devices.machine(devices.mesh(1)),
            "torch": version("torch"),
            "torch_threads": torch.get_num_threads(),
            "load_average_before": round(load, 2),
        },
        **compare(steps, options.rounds),
    }
    file = Path("results") / f"benchmark-{name}-{options.preset}.json"
    lines = ",\n".join(f' "{field}": {json.dumps(value)}' for field, value in result.items())
    file.write_text(f"{{\n{lines}\n}}\n")
    tell(json.dumps({part: result[part] for part in ("ratio", "ratio_of_fastest")}, indent=1))
    tell(f"written to {file}")
