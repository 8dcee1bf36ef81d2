"""Pictures: what a run or a claim shows, as PNG."""

import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from jaxhist import log
from jaxhist.files import failing_in_one_line


def curves(workdir: epath.Path):
    """Write `curves.png` from the log of a run: a panel for each metric, a line per phase.

    Metrics that begin with the same word, such as `loss 0.1` and `loss 0.01`, share a panel.
    """
    header, *lines = log.read(workdir)
    series: dict[str, dict[tuple[str, str], list]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "phase", "speed") and value is not None:
                metric, _, setting = name.partition(" ")
                points = series.setdefault(metric, {}).setdefault((setting, line["phase"]), [])
                points.append((line["step"], value))
    columns = min(len(series), 4)
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    styles = {
        "train": {"color": "tab:gray", "linewidth": 0.8},
        "evaluate": {"color": "tab:blue", "marker": "o", "markersize": 3},
        "test": {"color": "tab:red", "marker": "*", "markersize": 13, "linestyle": "none"},
    }
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(series) :]:
        axes.remove()
    for axes, (metric, of_metric) in zip(panels, series.items(), strict=False):
        settings = list(dict.fromkeys(setting for setting, _ in of_metric))
        for (setting, phase), points in of_metric.items():
            label = phase if phase != "test" else f"test {points[-1][1]:.4g}"
            color = {"color": f"C{settings.index(setting)}"} if setting else {}
            axes.plot(
                *np.transpose(points), label=f"{setting} {label}".strip(), **styles[phase] | color
            )
        if ("loss" in metric or metric == "perplexity") and min(
            value for p in of_metric.values() for _, value in p
        ) > 0:
            logarithmic(axes)
        axes.set(title=metric, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=None if len(of_metric) <= 6 else 6)
    config = "  ".join(f"{name}={value}" for name, value in header["config"].items())
    title = textwrap.fill(f"{header['experiment']}   {config}", 85 * columns)
    figure.suptitle(title, fontsize=8)
    with failing_in_one_line(workdir), (workdir / "curves.png").open("wb") as file:
        figure.savefig(file, format="png", dpi=110)


def compare(
    axes: Axes, runs: dict[str, list[list[dict]]], value, window: int = 1, phase: str = "train"
):
    """A curve for each arm over the steps: the mean over its runs, in the band of them all.

    Args:
      axes: to draw in.
      runs: arm -> for each seed the lines of its log.
      value: line -> what to draw.
      window: how many lines to average before drawing.
      phase: which lines, of training or of evaluations.
    """
    for arm, logs in runs.items():
        lines = [[line for line in log if line.get("phase") == phase] for log in logs]
        steps = [line["step"] for line in lines[0]]
        values = np.array([[value(line) for line in log] for log in lines])  # [seeds, lines]
        smooth = np.array([np.convolve(row, np.ones(window) / window, "valid") for row in values])
        (curve,) = axes.plot(steps[window - 1 :], smooth.mean(0), label=arm)
        band = smooth.min(0), smooth.max(0)
        axes.fill_between(steps[window - 1 :], *band, color=curve.get_color(), alpha=0.2, lw=0)
    axes.set(xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend()


def until_diverged(axes: Axes, runs: dict[str, list[list[dict]]]):
    """The training loss of every run, with a cross at the end of those that have diverged.

    Args:
      axes: to draw in.
      runs: arm -> for each seed the lines of its log.
    """
    every = []
    for index, (arm, logs) in enumerate(runs.items()):
        for number, lines in enumerate(logs):
            trained = [line for line in lines if line.get("phase") == "train"]
            name = next((name for line in trained for name in line if name.startswith("loss")), "")
            steps, losses = ([line[of] for line in trained] for of in ("step", name))
            label = None if number else arm
            axes.plot(steps, losses, color=f"C{index}", label=label, linewidth=0.8)
            if lines and lines[-1].get("phase") == "diverged":
                axes.plot(steps[-1:], losses[-1:], "x", color=f"C{index}")
            every += losses
    if min(every, default=0) > 0:
        logarithmic(axes)
    axes.set(xlabel="step", ylabel="training loss", title="a cross: then it diverges")
    axes.grid(alpha=0.3)
    axes.legend()


def logarithmic(axes: Axes):
    """Of a vertical axis of logarithms, whose numbers are written out: 60, not 6 x 10^1."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())


def points(axes: Axes, values: dict[str, Sequence[float]]):
    """A point for each value, and a line with the mean of each group of them."""
    for place, of_group in enumerate(values.values()):
        mean = np.mean(of_group)
        axes.hlines(mean, place - 0.25, place + 0.25, color=f"C{place}", linewidth=3)
        axes.plot([place] * len(of_group), of_group, ".", color="black", markersize=5)
        axes.text(place + 0.28, mean, f"{mean:.1f}", va="center", fontsize=9)
    axes.set_xticks(range(len(values)), list(values))
    axes.set(xlim=(-0.5, len(values) - 0.3))
    axes.grid(alpha=0.3, axis="y")


def filters(kernel: np.ndarray, columns: int = 16) -> np.ndarray:
    """The filters of a first layer, side by side, as in Fig. 3 of AlexNet.

    Zero is grey, and the largest weight of each filter is full on or full off.

    Args:
      kernel: [h, w, C, N], C is 1 (grey) or 3 (red, green, blue).
      columns: filters in a row.

    Returns:
      [H, W, 3] uint8, white between the filters and where a row is not full.
    """
    channels = kernel.shape[2]
    each = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)  # [N, h, w, C]
    largest = np.abs(each).max((1, 2, 3), keepdims=True)
    each = (127.5 + 127.5 * each / np.maximum(largest, 1e-12)).round().astype(np.uint8)
    return tiles(np.repeat(each, 3 // channels, -1), columns)


def tiles(images: np.ndarray, columns: int, height: int = 40) -> np.ndarray:
    """Images side by side, enlarged so that they can be seen.

    Args:
      images: [N, h, w, C] uint8.
      columns: images in a row.
      height: of an image, at least, in pixels.

    Returns:
      [H, W, C] uint8, white between the images and where a row is not full.
    """
    pixels = -(-height // images.shape[1])  # to one of an image, on a side
    images = images.repeat(pixels, 1).repeat(pixels, 2)
    rows = -(-len(images) // columns)
    blank = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    blank[: len(images)] = images
    blank = np.pad(blank, ((0, 0), (0, 4), (0, 4), (0, 0)), constant_values=255)
    grid = blank.reshape(rows, columns, *blank.shape[1:]).swapaxes(1, 2)  # [rows, h, columns, w, C]
    return grid.reshape(rows * blank.shape[1], columns * blank.shape[2], -1)


def neighbours(rows: np.ndarray, same: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Images and what is nearest to each of them.

    Args:
      rows: [R, 1 + K, H, W, 3] uint8, in each row an image and its K neighbours, nearest first.
      same: [R, K], which of them are of the image's class; the others get a red frame.
      names: what to write beside each row.

    Returns:
      [H', W', 3] uint8.
    """
    R, columns, H = rows.shape[:3]
    pixels = -(-64 // H)  # to a pixel, on a side
    each = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    each = each.repeat(pixels, 2).repeat(pixels, 3)
    height, width = each.shape[2:4]
    inside = np.zeros((height, width), bool)
    inside[pixels:-pixels, pixels:-pixels] = True
    right = np.concatenate([np.ones((R, 1), bool), same], 1)[..., None, None, None]
    frames = np.where(right, np.uint8(255), np.array([214, 39, 40], np.uint8))
    each = np.where(inside[..., None], each, frames)
    tiles = each.swapaxes(1, 2).reshape(R * height, columns * width, 3)
    figure = Figure(figsize=(0.75 * columns + 1.4, 0.75 * R + 0.3), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.imshow(tiles, interpolation="nearest")
    axes.set_yticks((np.arange(R) + 0.5) * height, names, fontsize=9)
    axes.set_title("image, and the nearest first; in red, of another class", fontsize=10)
    axes.set(xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _pixels(figure)


def scatter(places: np.ndarray, label: np.ndarray, names: Sequence[str], title: str) -> np.ndarray:
    """Points [N, 2] in the colours of their classes [N]. -> [H, W, 3] uint8"""
    figure = Figure(figsize=(7.5, 6), layout="constrained", dpi=100)
    axes = figure.subplots()
    for index, name in enumerate(names):
        axes.plot(*places[label == index].T, ".", markersize=5, label=name, color=f"C{index}")
    axes.set(xticks=[], yticks=[], title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return _pixels(figure)


def attention(
    panels: dict[str, np.ndarray], source: Sequence[str], target: Sequence[str]
) -> np.ndarray:
    """What is looked at while a sentence is written: white is 1, black 0.

    Args:
      panels: title -> weights [T, S], side by side.
      source, target: the S and the T tokens.

    Returns:
      [H, W, 3] uint8.
    """
    rows = -(-len(panels) // 4)
    columns = -(-len(panels) // rows)
    width, height = 0.2 * len(source) + 1.6, 0.2 * len(target) + 1.6
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one in axes[len(panels) :]:
        one.remove()
    for one, (title, weights) in zip(axes, panels.items(), strict=False):
        one.imshow(weights, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        one.set_xticks(range(len(source)), source, rotation=90, fontsize=8)
        one.set_yticks(range(len(target)), target, fontsize=8)
        one.xaxis.tick_top()
        one.set_xlabel(title)
        one.tick_params(length=0)
    return _pixels(figure)


def bars(values: dict[str, float], title: str, xlabel: str) -> np.ndarray:
    """A bar for each value, under its name. -> [H, W, 3] uint8"""
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.bar_label(axes.bar(values.keys(), values.values(), color="tab:blue"), fmt="%.3g")
    axes.set(title=title, xlabel=xlabel, ylim=(0, None))
    return _pixels(figure)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
