"""Checkpoints that can be trusted. The only file that knows Orbax.

    WORKDIR/checkpoints/STEP/            what Orbax wrote
    WORKDIR/checkpoints/STEP/SHA256SUMS  written last: a checkpoint without it was never finished
    WORKDIR/checkpoints/STEP.again/      becomes STEP in its place: a step that is saved once more

Orbax makes a save atomic, but does not notice a byte that changed later. So every file's SHA-256 is
compared before a checkpoint is restored (by hand: `cd STEP && sha256sum -c SHA256SUMS`). Of several
processes each sums up the files that it wrote, and later verifies its share of all.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxhist import UserError, malloc, processes, quiet, warn
from jaxhist.algorithm import State
from jaxhist.files import write_durably

SUMS = "SHA256SUMS"
AGAIN, REPLACED = ".again", ".replaced"
PATIENCE = 3_600_000  # milliseconds until all processes must have summed up what they wrote
WHOLE, GONE = -1, -2  # what is found of a checkpoint's files, where it is not the number of one

# Orbax cuts every array into as many slices as devices have it, so that all of them write; each
# slice is a program. For small arrays this takes ten times as long as to write them from one.
ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = 2**20


class Progress(NamedTuple):
    """What the loop remembers beside the state."""

    best: float = -np.inf  # the best score so far
    best_step: int = -1  # the last step that had it; -1: no score yet
    since: int = 0  # evaluations since it was first reached
    due: bool = False  # whether the evaluation of this step has been put off

    def after(self, step: int, score: float | None) -> "Progress":
        """Progress after one more evaluation, None if it gave no score. Neither a tie nor a NaN is
        an improvement; of equal states the later one is kept, which has learned longer."""
        if score is None:
            return self._replace(due=False)
        if score > self.best:
            return Progress(score, step, 0)
        best_step = step if score == self.best else self.best_step
        return Progress(self.best, best_step, self.since + 1)


class Checkpoints:
    """The last two checkpoints of a run and the best, saved while training goes on."""

    def __init__(self, workdir: epath.PathLike):
        self.folder = epath.Path(workdir).absolute() / "checkpoints"  # Orbax wants it absolute
        self._exit = contextlib.ExitStack()
        # Every error of Orbax is raised again in `wait`; its log adds a screenful of tracebacks.
        self._exit.enter_context(quiet("orbax"))
        self._path = self._exit.enter_context(_plain(self.folder))  # the folder, for Orbax
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self._saving = -1  # the step of the pending save
        self._previous: set[int] = set()  # the newest checkpoint and the best one as of then

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, whole or damaged, newest first."""
        names = (path.name for path in self.folder.iterdir()) if self.folder.exists() else ()
        return sorted(
            (int(x) for x in names if x.isdigit() and (self.folder / x / SUMS).exists()),
            reverse=True,
        )

    def save(self, step: int, state: State, progress: Progress):
        """Copy the state off the devices, and write it in the background.

        Raises:
          UserError: the save before this one failed (a full disk, say).
        """
        self.wait()
        self._saving = step
        self._check_space(state)
        saved = {"state": state, "progress": jax.tree.map(np.asarray, progress._asdict())}
        name = f"{step}{AGAIN}" if (self.folder / str(step)).exists() else str(step)
        with self._failing_in_one_line():
            self._orbax.save(self._path / name, args=ocp.args.StandardSave(saved))
        self._pending = self._worker.submit(self._finish, name, step, progress.best_step)

    def _finish(self, name: str, step: int, best: int):
        self._orbax.wait_until_finished()
        malloc.give_back()  # the copy of the state, and the buffers it was written through
        self._sum_up(name)
        if not processes.first():
            return
        if name.endswith(AGAIN):
            replaced = self.folder / f"{step}{REPLACED}"
            (self.folder / str(step)).rename(replaced)
            (self.folder / name).rename(self.folder / str(step))
            replaced.rmtree()
        # The newest, the one before it, and the best as of either: should the newest be damaged,
        # the run goes on from the other and still finds its best.
        newest = {step, best} - {-1}
        for old in set(self.steps()) - newest - self._previous:
            (self.folder / str(old) / SUMS).unlink()
            (self.folder / str(old)).rmtree()
        self._previous = newest

    def _sum_up(self, name: str):
        """Each process what it wrote; the first puts the lines together."""
        folder, me = self.folder / name, jax.process_index()
        parts = [self.folder / f"{name}.{number}.{SUMS}" for number in range(jax.process_count())]
        mine = [file for file in _files(folder) if _writer(file) == me]
        write_durably(parts[me], "".join(_line(folder, file) for file in mine))
        ocp.multihost.get_barrier_sync_fn()(key=f"sums of {folder}", timeout_ms=PATIENCE)
        if not processes.first():
            return
        stored = {}
        for part in parts:
            stored |= _stored(part)
        draft = self.folder / f"{name}.{SUMS}"
        write_durably(draft, "".join(stored[file] for file in sorted(stored)))
        draft.rename(folder / SUMS)
        for part in parts:
            part.unlink()

    def wait(self):
        """Wait until the last save is on the disk.

        Raises:
          UserError: it failed.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self._failing_in_one_line():
                pending.result()

    def _check_space(self, state: State):
        """Say it before half of a checkpoint is written, where the file system can tell."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with contextlib.suppress(OSError):  # not every one can
            free = shutil.disk_usage(self.folder.parent).free
            if free < needed:
                raise self._failure(f"no space left on device ({needed:,} bytes, {free:,} free)")

    def _failure(
        self, reason: str, advice: str = "make room and run the same command again"
    ) -> UserError:
        good = [step for step in self.steps() if step != self._saving]
        return UserError(
            f"checkpoint {self.folder / str(self._saving)} could not be saved: {reason}; the last "
            f"good one is {good[0] if good else 'none'}; {advice}"
        )

    @contextlib.contextmanager
    def _failing_in_one_line(self):
        try:
            yield
        except (OSError, ValueError) as error:  # what Orbax makes of a full disk is a ValueError
            if isinstance(error.__cause__, jax.errors.JaxRuntimeError):  # Orbax waits for all
                ended = "another process of this job has ended"
                raise self._failure(ended, "start all of them again") from error
            full = "No space left" in str(error)
            reason = "no space left on device" if full else " ".join(str(error).split())
            raise self._failure(reason) from error

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint, None if there is no checkpoint; in every process
        the same. Warns of the damaged ones that it passes over.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        damaged = {}
        left = lambda: next((step for step in self.steps() if step not in damaged), -1)
        while (step := processes.from_first(left)) != -1:
            if not (damage := self.damage(step)):
                for bad, what in damaged.items() if processes.first() else ():
                    warn(f"checkpoint {self.folder / str(bad)} is damaged ({what}); using {step}")
                return step
            # Whoever trains here may have removed it meanwhile.
            if processes.from_first(lambda step=step: step in self.steps()):
                damaged[step] = damage
        if damaged:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged (the newest: "
                f"{damaged[max(damaged)]}); start again in another directory"
            )
        return None

    def begin(self) -> int | None:
        """As `newest`. And what cannot be used is out of the way."""
        if processes.first():
            self._put_back()
        newest = self.newest()
        if processes.first():
            self.clean(newest)
        return newest

    def _put_back(self):
        """The checkpoint that was about to be replaced when the run was killed."""
        for path in self.folder.iterdir() if self.folder.exists() else ():
            step = self.folder / path.name.removesuffix(REPLACED)
            if path != step and not step.exists():
                path.rename(step)

    def clean(self, newest: int | None):
        """Remove what a kill left unfinished, and set aside what is newer than the newest whole
        checkpoint, which is damaged. For the one process that trains."""
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.name.endswith(SUMS):
                path.unlink()
            elif "orbax-checkpoint-tmp" in path.name or path.suffix in (AGAIN, REPLACED):
                path.rmtree()
            elif path.name.isdigit() and not (path / SUMS).exists():
                warn(f"checkpoint {path} was not finished; removing it")
                path.rmtree()
            elif path.name.isdigit() and newest is not None and int(path.name) > newest:
                aside = self.folder / f"{path.name}.damaged"
                if aside.exists():
                    aside.rmtree()
                path.rename(aside)

    def damage(self, step: int) -> str:
        """What is wrong with a checkpoint, in a few words; empty if nothing is. Each process reads
        its share of the files, and all say the same."""
        folder, files, found = self.folder / str(step), [], WHOLE
        try:
            stored = _stored(folder / SUMS)
            files = sorted({*stored, *_files(folder)})
            for file in _share(folder, files):
                if _line(folder, file) != stored.get(file):
                    found = files.index(file)
        except OSError:  # a file or all of them are gone
            found = GONE
        bad = set(processes.of_each(found)) - {WHOLE}
        if bad - {GONE}:
            return f"{files[max(bad)]} changed since it was saved"
        return "some of its files are gone" if bad else ""

    def restore(self, step: int, like: State) -> tuple[State, Progress]:
        """A checkpoint, laid out on the devices as `like`, a State of jax.ShapeDtypeStructs with
        shardings: on as many devices as there are now, not as there were. `only` makes one of which
        not all is read.

        Its files are not verified here, but in `newest` and `best`.

        Raises:
          UserError: it holds a state of another shape.
        """
        path = self._path / str(step)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            tree = orbax.metadata(path).item_metadata.tree
            fields = Progress()._asdict()
            fields = {name: np.asarray(fields[name]) for name in fields if name in tree["progress"]}
            target = {"state": like, "progress": fields}  # older runs have fewer of them
            there, here = _shapes(tree), _shapes(target)
            for name in sorted(there.keys() | here.keys()):
                if here.get(name, ()) not in (None, there.get(name)):
                    raise UserError(
                        f"checkpoint {self.folder / str(step)} is of another program: {name} is "
                        f"{there.get(name)} there, {here.get(name)} here"
                    )
            where = ocp.checkpoint_utils.construct_restore_args(target)
            saved = orbax.restore(path, ocp.args.PyTreeRestore(item=target, restore_args=where))
        progress = {name: value.item() for name, value in saved["progress"].items()}
        self._previous = {step, progress["best_step"]} - {-1}
        state = jax.tree.map(lambda x: None if x is ocp.PLACEHOLDER else x, saved["state"])
        return state, Progress(**progress)

    def best(self, state: State, progress: Progress, like: State) -> State:
        """The state with the best score; where there is none, or it is damaged, `state`."""
        step = progress.best_step
        if step in (-1, int(state.step)):
            return state

        if not (damage := self.damage(step)):
            return self.restore(step, like)[0]
        if processes.first():
            warn(
                f"checkpoint {self.folder / str(step)}, the best, is damaged ({damage}); "
                f"using {int(state.step)}"
            )
        return state

    def close(self):
        """Wait for the last save and end the threads.

        Raises:
          UserError: the save failed.
        """
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._orbax.close()
            self._exit.close()


@contextlib.contextmanager
def _plain(folder: epath.Path) -> Iterator[epath.Path]:
    """A path to a folder without a character that Orbax takes for a pattern or an address."""
    if re.fullmatch(r"[\w./ -]*", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxhist-") as links:
        os.symlink(folder.parent, f"{links}/run")
        yield epath.Path(links) / "run" / folder.name


def tested(workdir: epath.PathLike, like: State) -> State:
    """The state that a run's test measures: the best where there is a score, else the last. The run
    may go on meanwhile.

    Args:
      workdir: of the run.
      like: as in `Checkpoints.restore`.

    Raises:
      UserError: there is no checkpoint yet, or it is of another shape.
    """
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        while (newest := checkpoints.newest()) is not None:
            try:
                state, progress = checkpoints.restore(newest, like)
                found = checkpoints.best(state, progress, like)
            except Exception:  # of many kinds, where files go while they are read
                if newest in checkpoints.steps():
                    raise
                continue
            right = progress.best_step in (-1, int(found.step))
            if right or newest in checkpoints.steps():
                return found
        raise UserError(f"no checkpoint in {workdir} yet")


def only(like: State, part: Callable[[State], Any]) -> State:
    """To restore that part and the step, and None in the place of every other array."""
    wanted = {id(leaf) for leaf in jax.tree.leaves((like.step, part(like)))}
    return jax.tree.map(lambda leaf: leaf if id(leaf) in wanted else ocp.PLACEHOLDER, like)


def _shapes(tree) -> dict[str, tuple]:
    """Path in the tree -> shape and dtype; None of what is not wanted."""
    of = lambda leaf: (leaf.shape, np.dtype(leaf.dtype)) if leaf is not ocp.PLACEHOLDER else None
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="."): of(leaf) for k, leaf in leaves}


def _files(folder: epath.Path) -> list[str]:
    """Those below a folder that are summed up."""
    found = (parent / name for parent, _, names in folder.walk() for name in names)
    return sorted({str(path.relative_to(folder)) for path in found} - {SUMS})


def _writer(file: str) -> int:
    """The number of the process that wrote it, which is in its path; the first writes the rest."""
    found = re.search(r"process_(\d+)", file)
    return int(found[1]) if found else 0


def _share(folder: epath.Path, files: list[str]) -> list[str]:
    """Those that this process verifies. From the largest to the smallest each goes to the process
    that has least to read so far."""
    sizes = {file: (folder / file).stat().length for file in files}
    loads, mine = [0] * jax.process_count(), []
    for file in sorted(files, key=lambda file: (-sizes[file], file)):
        number = loads.index(min(loads))
        loads[number] += sizes[file]
        mine += [file] if number == jax.process_index() else []
    return mine


def _line(folder: epath.Path, file: str) -> str:
    """As `sha256sum` prints it."""
    with (folder / file).open("rb") as opened:
        return f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {file}\n"


def _stored(sums: epath.Path) -> dict[str, str]:
    """The lines of a file of sums, each by the name of its file."""
    lines = sums.read_bytes().decode(errors="replace").splitlines(keepends=True)
    return {line.rstrip("\n").split("  ")[-1]: line for line in lines}
