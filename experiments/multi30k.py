"""Three networks and one task: who translates captions of photographs best?

    python -m experiments.seq2seq train multi30k
    python -m experiments.attention train multi30k
    python -m experiments.transformer train multi30k
    python -m experiments.multi30k

The last command reads the logs of the others, each of which trains for 45 minutes of one core. It
prints what they cost and reach, and writes it to `multi30k.json`, and BLEU by the length of the
sentence, as in Fig. 2 of Bahdanau et al. (arXiv:1409.0473), to `multi30k.png`.
"""

import json
import sys

import tyro
from etils import epath
from matplotlib.figure import Figure

from experiments import translating_claims, translating_pictures
from jaxhist import UserError, evaluate, log, tell
from jaxhist.files import failing_in_one_line, write_durably

RUNS = tuple(f"runs/{name}-multi30k" for name in ("seq2seq", "attention", "transformer"))


def main(runs: tyro.conf.Positional[tuple[str, ...]] = RUNS, output: str = "results"):
    """Set trained networks side by side.

    Args:
      runs: their directories.
      output: the directory of multi30k.json and multi30k.png.
    """
    tests, table = {}, {}
    for workdir in runs:
        header, *lines = log.read(workdir)
        if not lines or lines[-1]["phase"] != "test":
            raise UserError(f"the run in {workdir} has not come to its end; train it first")
        name, end = header["experiment"], max(line["step"] for line in lines)
        tests[name] = [lines[-1]]
        costs = {unit: cost(lines, end) for unit, cost in translating_claims.COSTS.items()}
        table[name] = {**lines[-1], **costs}
        shown = {key: table[name][key] for key in ("BLEU", "perplexity", *costs, "step")}
        tell(f"{name:12} " + "  ".join(f"{key} {value:.4g}" for key, value in shown.items()))
    signature = evaluate.bleu(["a"], ["a"]).signature
    tell(f"BLEU: {signature}")
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    translating_pictures.draw_lengths(axes, tests)
    axes.legend()
    folder = epath.Path(output)
    with failing_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"signature": signature, "runs": table}, indent=1) + "\n"
        write_durably(folder / "multi30k.json", text)
        with (folder / "multi30k.png").open("wb") as file:
            figure.savefig(file, format="png")


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m experiments.multi30k")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
