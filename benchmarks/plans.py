"""The plans of `results/plans.json`: what the large presets need on TPUs.

    python -m benchmarks.plans [--output results/plans.json]

Needs libtpu (`pip install -e '.[tpu]'`); about ten minutes of one core.
"""

import subprocess
import sys

import tyro

PLANS = [
    "resnet plan imagenet50 --topology v5e:4x4",
    "transformer plan big --topology v5e:4x4 --batch 208",
    "gpt plan gpt2-xl --topology v5e:8x8 --run.mesh.fsdp 64 --dtype bfloat16",
    "gpt plan gpt3-175b --topology v5p:8x16x16 --run.mesh.fsdp 512 --run.mesh.tensor 4",
    "gpt plan gpt3-175b --topology v5e:2x2 --run.mesh.fsdp 4",  # does not fit
]


def main(output: str = "results/plans.json"):
    """Make all of them, one after the other.

    Args:
      output: the file that the figures are added to.
    """
    for line in PLANS:
        print(f"\n$ python -m experiments.{line}", flush=True)
        command = [sys.executable, "-m", *f"experiments.{line} --output {output}".split()]
        if subprocess.run(command).returncode != (line == PLANS[-1]):
            sys.exit("that was not expected")


if __name__ == "__main__":
    tyro.cli(main)
