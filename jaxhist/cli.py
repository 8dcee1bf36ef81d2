"""The command line that every experiment script has.

    python -m experiments.NAME                            what it can do
    python -m experiments.NAME train [PRESET] [OPTIONS]   train, or go on where a run stopped
    python -m experiments.NAME evaluate DIR [OPTIONS]     measure a run's checkpoint, as JSON
    python -m experiments.NAME describe [PRESET]          parameters, FLOPs, memory; no training
    python -m experiments.NAME plan [PRESET] --topology v5e:4x4   does it fit there, and how fast
    python -m experiments.NAME claims [--only R1] [--seeds 5]   what the paper says, put to the test

Exit codes: 0 done; 1 an error, in one line; 2 a wrong command; 75 stopped by SIGTERM or SIGINT with
everything saved: the same command goes on. A second signal ends the process at once.
"""

import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxhist import UserError, claims, devices, flops, log, malloc, plan, processes, tell
from jaxhist.algorithm import keys
from jaxhist.claims import Check, Claim, Equation
from jaxhist.devices import WHOLE, Axes
from jaxhist.stopping import Interrupted
from jaxhist.train import Experiment, Run, train

RESUME_ME = 75  # EX_TEMPFAIL of sysexits.h


def main(
    build: Callable[[Any, Run], Experiment],
    presets: dict[str, Any],
    claims: dict[str, Claim | Equation],
    commands: dict[str, Callable] | None = None,
):
    """Run the command in `sys.argv` for the script that defines `build`, and exit.

    Args:
      build: (config, run) -> Experiment. Reads no data before the experiment is asked for some.
      presets: name -> config, an instance of a frozen dataclass; the first is the default.
      claims: name -> claim, such as R1.
      commands: name -> (config, run, state, **options) -> None, what else can be done with a run's
        checkpoint. The options are the function's, with their types and what it says of them.
    """
    malloc.one_heap()
    for stream in (sys.stdout, sys.stderr):  # which need not know every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    commands = commands or {}
    script = _Script(Path(inspect.getfile(build)).stem, build, presets, claims, commands)
    verbs = {
        "train": script.train,
        "evaluate": script.evaluate,
        "describe": script.describe,
        "plan": script.plan,
        "claims": script.check,
        **{name: partial(script.command, name) for name in commands},
    }
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb not in ("train", "claims"):  # these go on where nobody reads any more
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        if sys.flags.optimize > 1:
            raise _UsageError("python -OO drops the texts that help is made of; -O does not")
        if not all(map(_is_utf8, arguments)):
            raise _UsageError(f"{' '.join(arguments)!a} is not UTF-8")
        if verb in ("-h", "--help"):
            tell(script.help(inspect.getmodule(build).__doc__))
            sys.exit(0)
        if verb not in verbs:
            raise _UsageError(f"no command {verb!r}; there are {', '.join(verbs)}")
        with devices.failing_in_one_line():
            sys.exit(verbs[verb](arguments))
    except (UserError, _UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, _UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _is_utf8(argument: str) -> bool:
    """Python keeps other bytes as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


class _UsageError(Exception):
    """The command itself is wrong."""


@dataclasses.dataclass(frozen=True)
class _Script:
    name: str
    build: Callable[[Any, Run], Experiment]
    presets: dict[str, Any]
    claims: dict[str, Claim | Equation]
    commands: dict[str, Callable]

    def train(self, arguments: list[str]) -> int:
        config, run = self._parse("train", arguments)
        identity = log.identity(self.name, config)
        job = processes.joined(run.distributed)
        with job, _interruptions() as interrupted:
            try:
                train(self.build(config, run), run, identity, interrupted)
            except Interrupted:
                return _stopped(run.workdir)
            if processes.first():
                tell(f"curves    {Path(run.workdir) / 'curves.png'}")
        return 0

    def evaluate(self, arguments: list[str]) -> int:
        program = f"python -m experiments.{self.name} evaluate DIR"
        if {"-h", "--help"} & set(arguments):
            tyro.cli(_Trained, prog=program, args=["--help"])
        workdir, where, others = _parse_trained(program, arguments)
        if others:
            raise _UsageError(f"{program} has no {' '.join(others)}")
        with self._trained(workdir, where) as (_, _, experiment, state):
            measured = {"evaluate": experiment.evaluate(state), "test": experiment.test(state)}
        scalars = {phase: log.scalars(metrics) for phase, metrics in measured.items()}
        print(json.dumps({"step": int(state.step), **scalars}))
        return 0

    def command(self, name: str, arguments: list[str]) -> int:
        program = f"python -m experiments.{self.name} {name} DIR"
        function = self.commands[name]
        if {"-h", "--help"} & set(arguments):
            places = f"{program} [--run.devices N] [--run.mesh.AXIS N]"
            tyro.cli(partial(function, None, None, None), prog=places, args=["--help"])
        workdir, where, options = _parse_trained(program, arguments)
        with self._trained(workdir, where) as (config, run, _, state):
            tyro.cli(partial(function, config, run, state), prog=program, args=options)
        return 0

    def describe(self, arguments: list[str]) -> int:
        config, run = self._parse("describe", arguments)
        experiment = self.build(config, dataclasses.replace(run, workdir=""))  # no files are needed
        key = keys(0)
        state = jax.eval_shape(experiment.init, key.init)

        trace = jax.make_jaxpr(experiment.step, return_shape=True)
        program, (_, metrics) = trace(state, experiment.batch, key.step)
        # The metrics are the last outputs, by name.
        outputs = {name: i - len(metrics) for i, name in enumerate(sorted(metrics))}
        losses = [i for name, i in outputs.items() if name.startswith("loss")]
        forward = flops.count(program.jaxpr, losses, backward=False)
        training = flops.count(program.jaxpr)
        # An example is what the step counts as one, or, if it gives no number, a row of the batch.
        examples = len(jax.tree.leaves(experiment.batch)[0])
        if "count/examples" in outputs:
            counted = program.jaxpr.outvars[outputs["count/examples"]]
            examples = int(getattr(counted, "val", examples))  # of a number, not of a variable
        tell(f"{self.name}  {_fields(config)}")
        tell(f"parameters      {_count(state.params):>18,}")
        tell(f"FLOPs   {forward // examples:>26,}  forward, an example; two to a multiply-add")
        tell(f"FLOPs   {training // examples:>26,}  training, an example")
        tell(f"FLOPs   {training:>26,}  training, a step of {examples} examples")
        for name in ("params", "opt_state", "extra"):
            tell(f"memory          {_bytes(getattr(state, name)):>18,}  bytes, {name}")
        tell(f"memory          {_bytes(experiment.batch):>18,}  bytes, a batch of {examples}")
        return 0

    def plan(self, arguments: list[str]) -> int:
        config, run, options = self._parse("plan", arguments, plan.Options)
        if not plan.inside():  # a mistake is said before another process starts
            return plan.outside()
        command = shlex.join(["python", "-m", f"experiments.{self.name}", "plan", *arguments])
        command = re.sub(r" --(output[= ]\S+|search)", "", command)
        plan.main(command, self.build, config, run, options)
        return 0

    def check(self, arguments: list[str]) -> int:
        default = Check(workdir=f"runs/{self.name}-claims")
        program = f"python -m experiments.{self.name} claims"
        options = tyro.cli(Check, default=default, prog=program, args=arguments, description="")
        for key in options.only:
            if key not in self.claims:
                raise _UsageError(f"no claim {key!r}; there are {', '.join(self.claims)}")
        if options.seeds < 1:
            raise _UsageError(f"{options.seeds} seeds are too few")
        chosen = {key: self.claims[key] for key in options.only or self.claims}
        command = " ".join([program, *arguments])
        with _interruptions() as interrupted:
            try:
                claims.check(self.name, chosen, self.build, options, command, interrupted)
            except Interrupted:
                return _stopped(options.workdir)
        return 0

    def help(self, header: str) -> str:
        presets = [f"  {name:10} {_fields(config)}" for name, config in self.presets.items()]
        commands = __doc__.split("\n\n")[1].replace("NAME", self.name)
        own = [
            f"    python -m experiments.{self.name} {name} DIR [OPTIONS]   "
            f"{inspect.getdoc(function).splitlines()[0]}"
            for name, function in self.commands.items()
        ]
        return "\n".join(
            [
                header.strip(),
                "\nPresets:",
                *presets,
                "\nClaims:",
                *(f"  {key:10} {claim.says}" for key, claim in self.claims.items()),
                "\nCommands:",
                commands,
                *own,
                f"    python -m experiments.{self.name} train [PRESET] --help     all options",
            ]
        )

    def _parse(self, verb: str, arguments: list[str], *options: type) -> tuple:
        """[PRESET] [--field value ...] [--run.field value ...], and the command's own options."""
        preset = next(iter(self.presets))
        if arguments and not arguments[0].startswith("-"):
            preset, *arguments = arguments
        if preset not in self.presets:
            raise _UsageError(f"no preset {preset!r}; there are {', '.join(self.presets)}")
        config = self.presets[preset]
        run = Run(workdir=f"runs/{self.name}-{preset}")
        bare = lambda kind: tyro.conf.OmitArgPrefixes[kind]
        parts = [(f"options_{i}", bare(kind)) for i, kind in enumerate(options)]
        parts += [("config", bare(type(config)), config), ("run", Run, run)]
        every = dataclasses.make_dataclass("every", parts, frozen=True)
        program = f"python -m experiments.{self.name} {verb} {preset}"
        chosen = tyro.cli(every, prog=program, args=arguments, description="")
        *own, config, run = (getattr(chosen, name) for name, *_ in parts)
        return config, run, *own

    @contextlib.contextmanager
    def _trained(self, workdir: str, where: "_Where") -> Iterator[tuple]:
        """The configuration of a run, the run, the experiment and the state that was tested."""
        header = log.read(workdir)[0]
        if header["experiment"] != self.name:
            raise UserError(f"{workdir} holds a run of {header['experiment']}, not of {self.name}")
        config = log.configuration(workdir, header, types(self.presets, self.claims))
        mesh = where.mesh
        if mesh == WHOLE:  # not given
            was = header["starts"][-1].get("mesh", {})
            split = Axes(fsdp=was.get("fsdp", 1), tensor=was.get("tensor", 1))
            if devices.mesh(where.devices).size % (split.fsdp * split.tensor) == 0:
                mesh = split
        run = Run(workdir=workdir, seed=header["seed"], devices=where.devices, mesh=mesh)
        experiment = self.build(config, run)
        with jax.set_mesh(devices.mesh(run.devices, run.mesh)):
            yield config, run, experiment, claims.tested(experiment, run)


def types(presets: dict[str, Any], claims: dict[str, Claim | Equation]) -> list[type]:
    """Of the configurations that a script knows: its presets, and the arms of its claims."""
    arms = [claim.arms.values() for claim in claims.values() if isinstance(claim, Claim)]
    return list(dict.fromkeys(map(type, itertools.chain(presets.values(), *arms))))


@dataclasses.dataclass(frozen=True)
class _Where:
    """What a run's checkpoint is opened on."""

    devices: int = 0  # how many devices to use, 0 for all
    mesh: Axes = WHOLE  # split as when it was trained, where there are devices for that


_Trained = dataclasses.make_dataclass("_Trained", [("run", _Where, _Where())], frozen=True)


def _parse_trained(program: str, arguments: list[str]) -> tuple[str, _Where, list[str]]:
    """DIR [--run.field value ...], and what is left for the command."""
    if not arguments or arguments[0].startswith("-"):
        raise _UsageError(f"{program} [OPTIONS]")
    workdir, *options = arguments
    of, others = tyro.cli(_Trained, prog=program, args=options, return_unknown_args=True)
    return workdir, of.run, others


def _stopped(workdir: str) -> int:
    print(f"stopped and saved in {workdir}; the same command goes on", file=sys.stderr)
    return RESUME_ME


def _fields(config: Any) -> str:
    return "  ".join(f"{name}={value}" for name, value in dataclasses.asdict(config).items())


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Watch for SIGTERM and SIGINT; yields what tells whether one came.

    A thread reads them from a pipe into which Python's own handler writes: it hears the second
    signal also while the main thread compiles, when handlers written in Python have to wait.
    """
    asked = threading.Event()
    read, write = os.pipe()
    os.set_blocking(write, False)

    def listen():
        for number in iter(lambda: os.read(read, 1), b""):
            if asked.is_set():
                os._exit(128 + number[0])
            asked.set()
            name = signal.Signals(number[0]).name
            print(
                f"{name}: finishing the step, then saving; once more to leave at once",
                file=sys.stderr,
            )

    threading.Thread(target=listen, daemon=True).start()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handlers = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(write)
