"""What may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxhist

PACKAGE = Path(jaxhist.__file__).parent

# The history of the field: a model imports from models of earlier papers alone.
HISTORY = [
    "alexnet",
    "dqn",
    "gan",
    "seq2seq",
    "attention",
    "googlenet",
    "adam",
    "dcgan",
    "resnet",
    "resnet_v2",
    "transformer",
    "bert",
    "gpt",
    "gpt_lstm",
    "simclr",
]


def imported(path):
    """The modules that a file names in its imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_trainer_knows_no_model_loss_or_optimizer():
    for file in ("train", "checkpoint", "devices", "log", "cli", "claims"):
        names = imported(PACKAGE / f"{file}.py")
        for part in ("jaxhist.models", "jaxhist.losses", "jaxhist.data", "optax", "flax"):
            assert not any(name.startswith(part) for name in names), (file, part)


def test_imports_point_to_the_past():
    files = {path.stem: path for path in (PACKAGE / "models").glob("*.py")}
    files.pop("__init__")
    assert set(files) == set(HISTORY)
    for name, path in files.items():
        for other in imported(path):
            if other.startswith("jaxhist.models."):
                assert HISTORY.index(other.split(".")[2]) < HISTORY.index(name), (name, other)


def test_only_one_file_knows_orbax():
    knowing = [p.name for p in PACKAGE.rglob("*.py") if any("orbax" in n for n in imported(p))]
    assert knowing == ["checkpoint.py"]


NOBODY = """
import sys

class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch", "transformers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nobody())
"""


def test_nothing_that_trains_needs_tensorflow_torch_or_transformers():
    """Where they are installed, libraries of others (tensorboardX) look for them; here nobody finds
    them, and whoever needs them fails. And what is slow to import waits until it is used."""
    scripts = [path.stem for path in (PACKAGE.parent / "experiments").glob("[a-z]*.py")]
    code = f"{NOBODY}\nfrom experiments import {', '.join(scripts)}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    loaded = set(process.stdout.split())
    assert {"jaxhist.train", "experiments.resnet", "experiments.googlenet"} <= loaded
    assert not {"tensorflow", "torch", "transformers", "sklearn", "scipy.stats"} & loaded


def test_scripts_can_be_read_in_one_sitting():
    """The four parts of an experiment, that is; its claims stand behind them."""
    for path in (PACKAGE / "train.py", *(PACKAGE.parent / "experiments").glob("*.py")):
        text, *_ = path.read_text().split("\n# Claims")
        assert len(text.rstrip().splitlines()) <= 180, path
