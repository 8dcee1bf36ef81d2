"""Pictures of the claims of the experiments of translation."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.translating_claims import COSTS, by_quarter, evaluations
from jaxhist import plots
from jaxhist.claims import Trained


def draw(trained: dict[str, list[Trained]], figure: Figure):
    """The perplexity of the validation data over the steps; and how good the translations of the
    test data are at the end, by the words of the source, as in Fig. 2 of Bahdanau et al."""
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2)
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(left, runs, lambda line: line["perplexity"], phase="evaluate")
    plots.logarithmic(left)
    left.set(ylabel="perplexity of a token, validation data")
    draw_lengths(right, {arm: [lines[-1] for lines in logs] for arm, logs in runs.items()})


def draw_lengths(axes: Axes, tests: dict[str, list[dict]]):
    """{arm: the test lines of its runs}: a line through the means, and a point for each run."""
    for number, (arm, lines) in enumerate(tests.items()):
        parts = list(by_quarter(lines[0]))
        values = np.array([list(by_quarter(line).values()) for line in lines])
        axes.plot(parts, values.mean(0), f"C{number}", label=arm)
        axes.plot(parts, values.T, f"C{number}o", alpha=0.5, markersize=4)
    measure = next(name for name in ("BLEU", "exact") if name in lines[0])
    axes.set(ylabel=f"{measure}, test data", xlabel="words of the source", ylim=(0, None))
    axes.grid(alpha=0.3)


def draw_costs(trained: dict[str, list[Trained]], figure: Figure):
    """Perplexity over seconds and over floating-point operations, a line for each seed."""
    figure.set_size_inches(10, 4)
    for axes, (unit, cost) in zip(figure.subplots(1, 2), COSTS.items(), strict=True):
        for number, (arm, runs) in enumerate(trained.items()):
            for run in runs:
                lines = evaluations(run)
                x = [cost(run.lines, line["step"]) for line in lines]
                label = arm if run is runs[0] else None
                axes.plot(x, [line["perplexity"] for line in lines], f"C{number}", label=label)
        plots.logarithmic(axes)
        axes.set(xlabel=f"{unit} of training", ylabel="perplexity of a token", xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
