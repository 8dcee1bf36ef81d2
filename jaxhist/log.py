"""What a run tells: `log.jsonl`, TensorBoard events, a progress bar or plain lines, pictures.

The first line of `log.jsonl` is the header: the experiment, the type of its configuration and all
its fields, and every start of the run (step, time, devices, versions). Every other line is one step
of one phase, "train", "evaluate" or "test"; of "diverged" the last one, where the loss of a step,
counted from 0, was not finite:

    {"step": 20, "phase": "train", "loss": 0.41, "accuracy": 0.9, "speed": {"examples/s": 5120.0}}

All but `speed` is a function of the configuration and the seed: the lines of a run that was killed
and resumed are those of one that was not.
"""

import contextlib
import dataclasses
import fcntl
import inspect
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxhist import UserError, console, tell
from jaxhist.files import failing_in_one_line, write_durably
from jaxhist.finite import NEVER, NonFinite

FILE = "log.jsonl"
fetch = jax.device_get  # of metrics; under a name of its own, so that a test can count


def read(workdir: epath.PathLike) -> list[dict]:
    """The header and the lines of a run's log, without a last line that a kill has torn.

    Raises:
      UserError: there is no log, or it has no header.
    """
    path = epath.Path(workdir) / FILE
    if not path.exists():
        raise UserError(f"no run in {workdir}: {path} does not exist")
    lines = []
    for line in path.read_bytes().decode(errors="replace").splitlines(keepends=True):
        try:
            lines.append(json.loads(line) if line.endswith("\n") else None)
        except ValueError:
            lines.append(None)
    if None in lines:
        lines = lines[: lines.index(None)]
    if not lines or not isinstance(lines[0], dict) or not {"config", "starts"} <= lines[0].keys():
        raise UserError(f"{path} has no header: it is not the log of a run")
    return lines


def identity(experiment: str, config: Any) -> dict[str, Any]:
    """What must be the same for a run to go on, beside the seed: the first fields of its header."""
    return {
        "experiment": experiment,
        "type": _name(type(config)),
        "config": dataclasses.asdict(config),
    }


def configuration(workdir: epath.PathLike, header: dict, known: Iterable[type]) -> Any:
    """The configuration of a run.

    Args:
      workdir: of the run, for the message.
      header: of its log. In an older one there is no type: the first with these fields is taken.
      known: the types that it may have; nothing else is made of what a file says.

    Raises:
      UserError: it has none of them.
    """
    fields, named = header["config"], header.get("type")
    for kind in known:
        if named in (None, _name(kind)) and fields.keys() == {
            field.name for field in dataclasses.fields(kind)
        }:
            # JSON has no tuples.
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    raise UserError(
        f"{workdir} holds a run of another version of {header['experiment']}, whose "
        f"{named or 'configuration'} has {', '.join(fields)}"
    )


def _name(kind: type) -> str:
    """Of a type, by the file that defines it, which may be the script that runs: `gan.Config`."""
    return f"{Path(inspect.getfile(kind)).stem}.{kind.__qualname__}"


@contextlib.contextmanager
def claim(workdir: epath.PathLike, identity: dict) -> Iterator[list[dict]]:
    """Make a directory this process's own, to begin a run in it or to go on with the one there.

    Args:
      workdir: made if it is not there.
      identity: what must be the same for a run to go on; the values of the header's first fields.

    Yields:
      The earlier starts of the run there, [] if there is none.

    Raises:
      UserError: it holds another run (the text says what differs), another process trains there, or
        it is a bucket's address.
    """
    if "://" in str(workdir):  # nothing there can be locked, nor a file be added to
        raise UserError(f"{workdir} is not a directory; mount the bucket, and give its directory")
    if not str(workdir).isprintable():  # it would not be one line of what is told
        raise UserError(
            f"{str(workdir)!r} is no name for a directory: it has characters that cannot be shown"
        )
    workdir = epath.Path(workdir)
    with failing_in_one_line(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(workdir, os.O_RDONLY)
    try:
        with failing_in_one_line(workdir):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is training in {workdir}") from None
        starts = []
        if (workdir / FILE).exists():
            header = read(workdir)[0]
            starts = header.pop("starts")
            header.setdefault("type", identity.get("type"))  # of an older run it is not known
            if differing := differences(header, json.loads(json.dumps(identity))):
                longer = re.fullmatch(r"steps is \d+ there, \d+ here", differing)
                raise UserError(
                    f"{workdir} holds another run ({differing}); "
                    f"{'a run keeps the length that its schedules have; ' if longer else ''}"
                    "choose another directory with --run.workdir, or remove it"
                )
        yield starts
    finally:
        os.close(handle)


def changed(workdir: epath.PathLike, starts: list[dict], here: dict) -> str:
    """What differs from where a run was trained before, and its bits depend on; "" if nothing.

    Args:
      workdir: of the run, for the message.
      starts: the earlier ones, [] for a new run.
      here: the present one.

    Raises:
      UserError: its numbers would be others altogether.
    """
    if not starts:
        return ""
    there = starts[-1]
    old, new = there.get("arithmetic"), here["arithmetic"]
    if old and (differing := differences(old, new)):
        raise UserError(
            f"{workdir} holds a run of other numbers ({differing}); set this as it was there, or "
            "choose another directory with --run.workdir"
        )
    names = ["devices", "versions"]
    names += ["processor", "cores"] if here["devices"].endswith("cpu") else []
    of = lambda start: {name: start[name] for name in names if name in there}
    return differences(of(there), of(here))


def differences(there: dict, here: dict) -> str:
    """Of two dictionaries, such as `depth is 20 there, 56 here`."""
    texts = []
    for name in there.keys() | here.keys():
        a, b = there.get(name), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            texts.append(differences(a, b))
        elif a != b:
            texts.append(f"{name} is {a!r} there, {b!r} here")
    return "; ".join(sorted(filter(None, texts)))


class Log:
    """The log of one run, open for writing, and its clock.

    Every method that writes raises UserError where the disk is full or not writable.
    """

    def __init__(
        self,
        workdir,
        header: dict,
        start: int,
        steps: int,
        flops: int,
        peak: float | None,
        due: bool,
    ):
        """Keep what the log holds of the first `start` steps, and cut the rest.

        Args:
          workdir: the run's directory.
          header: the first line.
          start: the step from which the run goes on; 0 for a new run.
          steps: of the whole run, for the time left.
          flops: of one step.
          peak: FLOP/s of the devices; None if not known.
          due: whether the run goes on with the evaluation of step `start`.
        """
        self._workdir = epath.Path(workdir)
        self._steps, self._flops, self._peak = steps, flops, peak
        self._pending: tuple[int, dict, dict] | None = None  # step, metrics, speed
        self._recording = False
        with failing_in_one_line(self._workdir):
            kept = read(workdir)[1:] if start else []
            place = lambda line: (line["step"], line["phase"] == "evaluate")
            ends = "test", "diverged"
            kept = [x for x in kept if place(x) <= (start, not due) and x["phase"] not in ends]
            draft = self._workdir / f"{FILE}.draft"
            write_durably(draft, "".join(json.dumps(line) + "\n" for line in [header, *kept]))
            draft.replace(self._workdir / FILE)
            self._file = (self._workdir / FILE).open("a")
            (self._workdir / "tensorboard").mkdir(exist_ok=True)
            self._events = EventsWriter(str(self._workdir / "tensorboard" / "events"))
            # TensorBoard drops what a killed run wrote of the steps that now come again.
            log = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=start + 1, session_log=log))
        screen = console()
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=screen,
            disable=not screen.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=start, text="")
        self._bar.start()
        self._watch = ThreadPoolExecutor(1)  # that waits for the devices
        self._last_said = 0.0
        self._counted = start
        self._began, self._waited, self._paused = time.monotonic(), 0.0, 0.0

    @contextlib.contextmanager
    def fetching(self, running: jax.Array) -> Iterator[None]:
        """Getting a batch while the devices compute `running`. From when they are done until the
        batch is there, the time counts as waiting for input."""
        begin = time.monotonic()
        done = self._watch.submit(_time_when_ready, running)
        yield
        if done.done():
            self._waited += time.monotonic() - max(begin, done.result())

    @contextlib.contextmanager
    def pausing(self, what: str) -> Iterator[None]:
        """Time spent here, evaluating or saving, does not count as training."""
        begin = time.monotonic()
        self._bar.update(self._task, text=what)
        yield
        self._paused += time.monotonic() - begin

    @contextlib.contextmanager
    def profiling(self, step: int, steps: int) -> Iterator[None]:
        """Record the first `steps` steps, counted from 0, for TensorBoard's profiler."""
        if steps > 0 and step == 0:
            jax.profiler.start_trace(self._workdir / "profile")
            self._recording = True
        yield
        if self._recording and step == steps - 1:
            jax.profiler.stop_trace()
            self._recording = False

    def train(self, step: int, metrics: dict[str, jax.Array]):
        """Take the metrics of a step that may still be running, and log those of the last call.

        So the devices have work while the host waits. `count/NAME` becomes the rate NAME/s; a
        `nonfinite` other than NEVER is the first step whose loss was not finite.

        Raises:
          NonFinite: there was one.
        """
        self.flush()
        steps, self._counted = step - self._counted, step
        elapsed = max(time.monotonic() - self._began - self._paused, 1e-9)
        speed = {"seconds/step": elapsed / steps, "waiting": self._waited / elapsed}
        self._began, self._waited, self._paused = time.monotonic(), 0.0, 0.0
        self._pending = step, metrics, speed

    def flush(self):
        """Wait for the metrics of the last call of `train`, and log them."""
        if self._pending is None:
            return
        (step, metrics, speed), self._pending = self._pending, None
        metrics = fetch(metrics)
        if (first := int(metrics.pop("nonfinite"))) != NEVER:
            raise NonFinite(first)
        per_second = 1 / speed["seconds/step"]
        for name in [name for name in metrics if name.startswith("count/")]:
            speed[f"{name.removeprefix('count/')}/s"] = float(metrics.pop(name)) * per_second
        speed["FLOP/s"] = self._flops * per_second
        if self._peak:
            speed["utilization"] = speed["FLOP/s"] / self._peak
        self.write("train", step, metrics, speed)

    def write(
        self, phase: str, step: int, metrics: dict[str, Any], speed: dict[str, float] | None = None
    ):
        """Write one line and its events, and show it. A uint8 array becomes a picture: one of
        [H, W, C] a PNG, one of [T, H, W, C] a GIF."""
        speed = speed or {}
        numbers = scalars(metrics)
        pictures = {name: value for name, value in metrics.items() if name not in numbers}
        line = {"step": step, "phase": phase, **numbers, **({"speed": speed} if speed else {})}
        with failing_in_one_line(self._workdir):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in (numbers | speed).items():
                if value is not None:
                    event = Event(wall_time=time.time(), step=step)
                    event.summary.CopyFrom(scalar(f"{phase}/{name}", value))
                    self._events.write_event(event)
            self._events.flush()
            for name, value in pictures.items():
                suffix = "png" if value.ndim == 3 else "gif"
                write_picture(self._workdir / f"{name}.{suffix}", value)
        text = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        if phase == "train":
            text = f"{text}  {_speed(speed)}"
            self._bar.update(self._task, completed=step, text=text)
        if phase != "train" or (self._bar.disable and time.monotonic() - self._last_said > 1):
            left = speed and _clock(speed["seconds/step"] * (self._steps - step)) + " left"
            at = f"step {step:{len(str(self._steps))}}/{self._steps}"
            self.say(f"{phase:8}  {at}  {text}  {left or ''}")

    def say(self, text: str):
        """A line for the person who watches."""
        self._last_said = time.monotonic()
        if self._bar.disable:
            tell(text.rstrip())
        else:
            self._bar.console.print(text.rstrip(), soft_wrap=True)

    def close(self):
        """Leave the terminal in order. What was written is flushed: nothing is lost here."""
        self._bar.stop()
        self._watch.shutdown()
        if self._recording:
            jax.profiler.stop_trace()
        with contextlib.suppress(OSError):  # the full disk that ended the run
            self._file.close()
            self._events.close()


def write_picture(path: epath.Path, value: np.ndarray):
    """Write a picture [H, W, C] or a film [T, H, W, C] of ten pictures a second, uint8."""
    pixels = value[..., 0] if value.shape[-1] == 1 else value
    with failing_in_one_line(path), path.open("wb") as file:
        if value.ndim == 3:
            Image.fromarray(pixels).save(file, format="png")
            return
        first, *others = map(Image.fromarray, pixels)
        moving = {"save_all": True, "append_images": others, "duration": 100, "loop": 0}
        first.save(file, format="gif", **moving)


def _time_when_ready(array: jax.Array) -> float:
    array.block_until_ready()
    return time.monotonic()


def scalars(metrics: dict[str, Any]) -> dict[str, float | int | None]:
    """The metrics that are no pictures, losses first, as JSON has them."""
    names = sorted(metrics, key=lambda name: ("loss" not in name, name))
    return {name: _json(metrics[name]) for name in names if np.ndim(metrics[name]) == 0}


def _json(value) -> float | int | None:
    """A number as JSON has it: neither NaN nor infinity."""
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None


def _short(value: float | None) -> str:
    """Four digits: 0.01234, 56.78, 3.2k, 41.5G."""
    if value is None:
        return "nan"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def _speed(speed: dict[str, float]) -> str:
    """Such as `1280 examples/s  0.1% waiting  19.3G FLOP/s  41.2% utilization`."""
    texts = []
    for name, value in speed.items():
        if name.endswith("/s"):
            texts.append(f"{_short(value)} {name}")
        elif name != "seconds/step":
            texts.append(f"{value:.1%} {name}")
    return "  ".join(texts)


def _clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
