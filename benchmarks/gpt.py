"""Time a training step of GPT-2 beside Hugging Face's in PyTorch, taking turns on one GPU.

    pip install -e '.[benchmark,cuda]'
    python -m benchmarks.gpt gpt2 [--batch 16] [--rounds 20]

Both in bfloat16 with float32 parameters, no dropout, AdamW, gradients of norm 1 at most. PyTorch's
attention is fused or as written, and its step compiled or not. Writes
results/benchmark-gpt-PRESET.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy

from benchmarks import step
from experiments.gpt import PRESETS, Config, build
from jaxhist import devices, flops, tell
from jaxhist.algorithm import keys
from jaxhist.train import Run


def twin_step(config: Config, tokens: np.ndarray, attention: str, compiled: bool) -> step.Step:
    """Of batches [B, 1 + T]."""
    sizes = transformers.GPT2Config(
        vocab_size=config.vocabulary,
        n_positions=config.length,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation=attention,
    )
    model = transformers.GPT2LMHeadModel(sizes).cuda().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.from_numpy(tokens).long().cuda()

    def loss():
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    forward: Callable = torch.compile(loss) if compiled else loss

    def run():
        optimizer.zero_grad()
        forward().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=["gpt2"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="windows")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no such device: PyTorch finds no GPU here")
    config = replace(PRESETS[options.preset], batch=options.batch, dtype="bfloat16")
    experiment = build(config, Run(devices=1))
    shape = experiment.batch["tokens"].shape
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, shape, dtype=np.int32)

    key = keys(0)
    traced = jax.make_jaxpr(experiment.step)(
        jax.eval_shape(experiment.init, key.init), experiment.batch, key.step
    )
    steps = {
        "jax": step.jax_step(experiment, {"tokens": tokens}),
        "torch, fused attention": twin_step(config, tokens, "sdpa", False),
        "torch, fused attention, compiled": twin_step(config, tokens, "sdpa", True),
        "torch, attention as written, compiled": twin_step(config, tokens, "eager", True),
    }
    times = step.compare(steps, options.rounds)
    result = {
        "command": f"python -m benchmarks.gpt {options.preset} --batch {options.batch} "
        f"--rounds {options.rounds}",
        "date": time.strftime("%F"),
        "machine": {
            **devices.machine(devices.mesh(1)),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        **rates(times["median_seconds"], flops.count(traced.jaxpr), tokens[:, 1:].size),
        **times,
    }
    file = Path("results") / f"benchmark-gpt-{options.preset}.json"
    lines = ",\n".join(f' "{field}": {json.dumps(value)}' for field, value in result.items())
    file.write_text(f"{{\n{lines}\n}}\n")
    tell(
        json.dumps({part: result[part] for part in ("ratio", "tokens/s", "utilization")}, indent=1)
    )
    tell(f"written to {file}")


def rates(seconds: dict[str, float], work: int, tokens: int) -> dict[str, Any]:
    """Of steps of so many FLOPs, counted in JAX's program, and tokens."""
    peak = devices.peak_flops(devices.mesh(1))
    return {
        "FLOPs": work,
        "tokens/s": {name: round(tokens / each) for name, each in seconds.items()},
        "utilization": {name: round(work / each / peak, 4) for name, each in seconds.items()},
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
