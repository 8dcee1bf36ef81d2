"""BERT's claims: figures and pictures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxhist import plots
from jaxhist.claims import Figures, Trained


def figures(trained: Trained) -> Figures:
    """Of the test; shares in %."""
    test = trained.lines[-1]
    if trained.config.learn == "labels":
        return {name: 100 * test[name] for name in ("accuracy", "standard error")}
    return {
        "alone": 100 * test["accuracy alone"],
        "words": 100 * test["accuracy words"],
        "perplexity": test["perplexity"],
    }


def gain(by: dict[str, Figures], labels: str) -> float:
    """What the pre-training adds."""
    return by[f"pre-trained {labels}"]["accuracy"] - by[f"scratch {labels}"]["accuracy"]


def no_worse(one: Figures, other: Figures) -> float:
    """By how much one accuracy is above the other, less a standard error of it over the test."""
    return one["accuracy"] - other["accuracy"] + other["standard error"]


def draw_directions(trained: dict[str, list[Trained]], figure: Figure):
    """One hidden word over the steps, and the sentences at the end."""
    figure.set_size_inches(9, 4)
    left, right = figure.subplots(1, 2)
    names = {"both": "both sides", "left": "left to right"}
    runs = {text: [one.lines for one in trained[arm]] for arm, text in names.items()}
    plots.compare(left, runs, lambda line: 100 * line["accuracy alone"], phase="evaluate")
    left.set(ylabel="one hidden word guessed, %", ylim=(0, None))
    draw_points(right, trained, {"both tuned": "both sides", "left tuned": "left to right"})
    right.set(ylabel="accuracy, %", title="SST-2, fine-tuned")


def draw_labels(trained: dict[str, list[Trained]], figure: Figure):
    """Accuracy over the number of labels, with and without pre-training."""
    figure.set_size_inches(6, 4)
    axes, counts = figure.subplots(), {"100": 100, "1000": 1000, "all": 6920}
    for color, (kind, text) in enumerate(
        {"pre-trained": "pre-trained", "scratch": "from scratch"}.items()
    ):
        values = np.array(
            [[figures(one)["accuracy"] for one in trained[f"{kind} {count}"]] for count in counts]
        )
        axes.plot(list(counts.values()), values.mean(1), "-o", color=f"C{color}", label=text)
        axes.plot(list(counts.values()), values, ".", color=f"C{color}", markersize=4)
    axes.set(xscale="log", xlabel="labels", ylabel="accuracy, %", title="SST-2")
    axes.set_xticks(list(counts.values()), map("{:,}".format, counts.values()))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def draw_sizes(trained: dict[str, list[Trained]], figure: Figure):
    """Perplexity and the accuracy that comes of it, by size."""
    figure.set_size_inches(9, 4)
    left, right = figure.subplots(1, 2)
    sizes = {"tiny": "1x64", "smaller": "2x64", "both": "2x128"}
    draw_points(left, trained, sizes, "perplexity")
    left.set(ylabel="perplexity of hidden words", xlabel="layers x width")
    sizes = {"tiny tuned": "1x64", "smaller tuned": "2x64", "both tuned": "2x128"}
    draw_points(right, trained, sizes)
    right.set(ylabel="accuracy, %", xlabel="layers x width", title="SST-2, fine-tuned")


def draw_points(
    axes: Axes,
    trained: dict[str, list[Trained]],
    names: dict[str, str],
    figure: str = "accuracy",
):
    """Of each arm."""
    values = {text: [figures(one)[figure] for one in trained[arm]] for arm, text in names.items()}
    plots.points(axes, values)
