"""What the claims of GPT share: scaling laws, figures and pictures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxhist import plots
from jaxhist.claims import Figures, Trained

with epy.lazy_imports():  # they take a second
    import scipy.stats

# Kaplan et al., figure 1: the loss falls as x to the power of minus this.
KAPLAN = {"parameters": 0.076, "tokens": 0.095, "PF-days": 0.050}
PF_DAY = 8.64e19  # FLOPs


class Law(NamedTuple):
    """loss = scale x^-exponent, a straight line between logarithms, by least squares."""

    exponent: float
    error: float  # half the width of its confidence interval of 95 %
    r2: float  # the share of the variance of log loss that is explained
    band: Callable[[np.ndarray], np.ndarray]  # x [N] -> the law and its band of 95 %, [3, N]


def fit(x: Sequence[float], loss: Sequence[float]) -> Law:
    """The law through three points or more."""
    log_x, log_loss = np.log(x), np.log(loss)
    line = scipy.stats.linregress(log_x, log_loss)
    quantile = scipy.stats.t.ppf(0.975, len(log_x) - 2)
    left = log_loss - line.intercept - line.slope * log_x
    variance = np.sum(left**2) / (len(log_x) - 2)

    def band(at):
        log_at = np.log(at)
        far = (log_at - log_x.mean()) ** 2 / np.sum((log_x - log_x.mean()) ** 2)
        error = quantile * np.sqrt(variance * (1 / len(log_x) + far))
        middle = line.intercept + line.slope * log_at
        return np.exp([middle, middle - error, middle + error])

    return Law(-line.slope, quantile * line.stderr, line.rvalue**2, band)


def parameters(config: Any) -> int:
    """N without embeddings, biases and norms: 12 L D^2. Kaplan et al., equation 2.1."""
    return 12 * config.layers * config.width**2


def evaluations(trained: Trained) -> list[dict]:
    return [line for line in trained.lines if line.get("phase") == "evaluate"]


def lowest(trained: Trained) -> Figures:
    """Loss of the validation data, at the evaluation where it is lowest: there it would have been
    stopped early."""
    return {"loss": min(line["loss"] for line in evaluations(trained))}


def last(trained: Trained) -> Figures:
    """Loss of the validation data, at the end."""
    return {"loss": evaluations(trained)[-1]["loss"]}


def shots(trained: Trained) -> Figures:
    """How many questions of the test data are answered rightly, behind k demonstrations."""
    line = trained.lines[-1]
    return {name: value for name, value in line.items() if name.endswith("-shot")}


def compute(trained: Trained) -> tuple[list[float], list[float]]:
    """FLOPs in PF-days until each evaluation, and the loss there."""
    speed = next(line["speed"] for line in trained.lines if line.get("phase") == "train")
    of_step = speed["FLOP/s"] * speed["seconds/step"] / PF_DAY
    lines = evaluations(trained)
    return [line["step"] * of_step for line in lines], [line["loss"] for line in lines]


def frontier(x: Sequence[float], loss: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Of points those that none is below and left of, from left to right."""
    order = np.lexsort((loss, x))
    x, loss = np.array(x)[order], np.array(loss)[order]
    best = loss < np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
    return x[best], loss[best]


def draw_law(axes: Axes, name: str, x: Sequence[float], loss: Sequence[float], color: str):
    """The law through points, in its band, beside one with Kaplan's exponent."""
    law = fit(x, loss)
    at = np.geomspace(min(x), max(x), 50)
    middle, low, high = law.band(at)
    axes.plot(at, middle, color, label=f"exponent {law.exponent:.3f} ± {law.error:.3f}")
    axes.fill_between(at, low, high, color=color, alpha=0.2, lw=0)
    centre = np.exp(np.mean(np.log(x)))
    theirs = law.band(np.array([centre]))[0] * (at / centre) ** -KAPLAN[name]
    axes.plot(at, theirs, "k--", lw=0.8, label=f"Kaplan et al.: {KAPLAN[name]:.3f}")
    plots.logarithmic(axes)
    axes.set(xscale="log", xlabel=name, ylabel="loss of a token, nats")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def draw_sizes(trained: dict[str, list[Trained]], figure: Figure):
    """Loss over parameters, of the better rate at each size; and over what was computed, a line for
    each run and the law through the lowest points of all."""
    figure.set_size_inches(11, 4.5)
    left, right = figure.subplots(1, 2)
    best = {}
    for runs in trained.values():
        losses = [last(run)["loss"] for run in runs]
        size = parameters(runs[0].config)
        if size not in best or np.mean(losses) < np.mean(best[size]):
            best[size] = losses
    sizes = sorted(best)
    for size in sizes:
        left.plot([size] * len(best[size]), best[size], "C0o", alpha=0.5, markersize=4)
    draw_law(left, "parameters", sizes, [np.mean(best[size]) for size in sizes], "C0")
    left.set(xlabel="parameters without embeddings")
    every = [compute(run) for runs in trained.values() for run in runs]
    for x, loss in every:
        right.plot(x, loss, "gray", alpha=0.3, lw=0.8)
    x, loss = (np.concatenate(values) for values in zip(*every, strict=True))
    draw_law(right, "PF-days", *frontier(x, loss), "C1")


def draw_data(trained: dict[str, list[Trained]], figure: Figure):
    """Loss over the tokens to train on; and over the steps, for each share of the text."""
    figure.set_size_inches(11, 4.5)
    left, right = figure.subplots(1, 2)
    shares = [runs[0].config.share for runs in trained.values()]
    losses = [[lowest(run)["loss"] for run in runs] for runs in trained.values()]
    for share, of_share in zip(shares, losses, strict=True):
        left.plot([share] * len(of_share), of_share, "C0o", alpha=0.5, markersize=4)
    draw_law(left, "tokens", shares, np.mean(losses, 1), "C0")
    left.set(xlabel="share of the text to train on")
    draw_losses(trained, right)


def draw_losses(trained: dict[str, list[Trained]], axes: Axes):
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: line["loss"], phase="evaluate")
    plots.logarithmic(axes)
    axes.set(ylabel="loss of a token, validation data")


def draw_norms(trained: dict[str, list[Trained]], figure: Figure):
    """Loss over the steps."""
    figure.set_size_inches(6, 4)
    draw_losses(trained, figure.subplots())


def draw_shots(trained: dict[str, list[Trained]], figure: Figure):
    """Right answers over k, a line for each size, as in GPT-3's figure 1.2."""
    figure.set_size_inches(6, 4.5)
    axes = figure.subplots()
    for number, (arm, runs) in enumerate(trained.items()):
        names = list(shots(runs[0]))
        k = [int(name.split()[1].removesuffix("-shot")) for name in names]
        values = np.array([[shots(run)[name] for name in names] for run in runs])
        axes.plot(k, values.mean(0), f"C{number}", label=arm.removeprefix("letters "))
        axes.plot(k, values.T, f"C{number}o", alpha=0.5, markersize=4)
    axes.axhline(0.1, color="gray", linestyle="--", linewidth=0.8, label="at random")
    axes.set(xlabel="demonstrations in the context", ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
