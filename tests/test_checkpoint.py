import contextlib
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxhist import UserError, checkpoint, devices, malloc
from jaxhist.algorithm import State
from jaxhist.checkpoint import Checkpoints, Progress


def state(step, size=1000):
    params = {
        "a": jax.random.normal(jax.random.key(step), (size,)),
        "b": jnp.full(3, step, jnp.int8),
    }
    return State(jnp.int32(step), params, (jnp.ones(2, jnp.bfloat16), ()), {"n": jnp.uint32(step)})


NO_SCORE = Progress()
LIKE = jax.eval_shape(lambda: state(0))


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    yield checkpoints
    checkpoints.close()


def save(checkpoints, *steps, progress=NO_SCORE):
    for step in steps:
        checkpoints.save(step, state(step), progress)
    checkpoints.wait()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]


def test_another_c_library_has_nothing_to_give_back(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(malloc.ctypes, "CDLL", missing)
    malloc.give_back()
    malloc.one_heap()


def test_what_is_restored_is_what_was_saved(checkpoints):
    progress = Progress(0.1 + 0.2, 3, 4, True)
    save(checkpoints, 7, progress=progress)
    restored, restored_progress = checkpoints.restore(7, LIKE)
    assert_same(restored, state(7))
    assert restored_progress == progress
    assert [type(value) for value in restored_progress] == [float, int, int, bool]


@pytest.mark.parametrize("name", ["lr[0.1]", "*?", "{seed}", "100%25", "c#d", "a b", "a\\b", "gs:"])
def test_a_path_is_no_pattern(name, tmp_path):
    """Nor does a checkpoint know where it was saved."""
    here, moved = tmp_path / name, tmp_path / "moved"
    here.mkdir()
    with contextlib.closing(Checkpoints(here)) as checkpoints:
        save(checkpoints, 1, 2)
    for before, after in ((here, moved), (moved, here)):
        before.rename(after)
        with contextlib.closing(Checkpoints(after)) as checkpoints:
            assert checkpoints.steps() == [2, 1] and checkpoints.newest() == 2
            assert_same(checkpoints.restore(2, LIKE)[0], state(2))


def test_small_arrays_on_many_devices_are_saved_as_they_are(checkpoints):
    """Nothing is compiled to cut them into slices."""
    mesh, compiled = devices.mesh(8), []
    placed = devices.place(state(3), devices.whole(mesh))
    count = lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(count)
    with jax.set_mesh(mesh):
        checkpoints.save(3, placed, NO_SCORE)
        checkpoints.wait()
    jax.monitoring.clear_event_listeners()
    assert not compiled
    assert_same(checkpoints.restore(3, LIKE)[0], state(3))


def test_a_save_does_not_see_what_happens_to_the_state_afterwards(checkpoints):
    """Saving goes on in the background while the next step overwrites the donated state."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    big = jax.tree.map(jnp.copy, state(1, size=3_000_000))
    checkpoints.save(1, big, Progress())
    for _ in range(5):
        big = advance(big)
    checkpoints.wait()
    like = jax.eval_shape(lambda: state(1, size=3_000_000))
    assert_same(checkpoints.restore(1, like)[0], state(1, size=3_000_000))


def test_the_last_two_and_the_best_are_kept(checkpoints):
    save(checkpoints, 1, 2, 3)
    assert checkpoints.steps() == [3, 2]
    save(checkpoints, 4, 5, 6, 7, progress=Progress(1.0, 4, 0))
    assert checkpoints.steps() == [7, 6, 4]


def test_the_best_as_of_the_one_before_is_kept_too(checkpoints):
    save(checkpoints, 1, 2, 3, progress=Progress(1.0, 1, 0))
    save(checkpoints, 4, progress=Progress(2.0, 4, 0))
    assert checkpoints.steps() == [4, 3, 1]  # if 4 is damaged, 3 still finds its best
    save(checkpoints, 5, progress=Progress(2.0, 4, 1))
    assert checkpoints.steps() == [5, 4]


def test_any_changed_byte_is_noticed(checkpoints, capsys):
    """In every kind of file, SHA256SUMS included; the run goes back to the checkpoint before."""
    save(checkpoints, 10, 20)
    folder = checkpoints.folder / "20"
    files = sorted(parent / name for parent, _, names in folder.walk() for name in names)
    rng = np.random.default_rng(0)
    places = [(file, 0) for file in files]
    while len(places) < 24:
        file = files[rng.integers(len(files))]
        places.append((file, int(rng.integers(file.stat().length))))
    for file, place in places:
        original = file.read_bytes()
        changed = bytearray(original)
        changed[place] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(changed))
        assert checkpoints.newest() == 10, (file, place)
        assert "20 is damaged" in capsys.readouterr().err
        file.write_bytes(original)
        assert checkpoints.newest() == 20


def test_a_save_that_another_process_does_not_finish(checkpoints, monkeypatch):
    save(checkpoints, 10)

    def wait():
        raise TimeoutError from jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints._orbax, "wait_until_finished", wait)
        with pytest.raises(UserError, match=r"another process .* good one is 10; start all of"):
            save(checkpoints, 20)


@pytest.mark.parametrize("change", ["truncated", "removed", "added"])
def test_the_newest_whole_checkpoint_is_used(checkpoints, change, capsys):
    save(checkpoints, 10, 20)
    file = max(
        (checkpoints.folder / "20").glob("ocdbt.process_0/d/*"), key=lambda p: p.stat().length
    )
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "removed":
        file.unlink()
    else:
        (file.parent / "more").write_bytes(b"")
    assert checkpoints.newest() == 10
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "checkpoints/20 is damaged" in warning
    checkpoints.clean(10)
    assert checkpoints.steps() == [10]
    assert_same(checkpoints.restore(10, LIKE)[0], state(10))
    assert (checkpoints.folder / "20.damaged").exists()
    save(checkpoints, 20)
    assert checkpoints.steps() == [20, 10]


def test_if_all_are_damaged_nothing_starts_silently_anew(checkpoints):
    save(checkpoints, 10, 20)
    for step in ("10", "20"):
        (checkpoints.folder / step / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        checkpoints.newest()


def test_what_a_killed_save_left_is_removed(checkpoints, capsys):
    save(checkpoints, 10, 20)
    (checkpoints.folder / "20" / "SHA256SUMS").rename(checkpoints.folder / "20.SHA256SUMS")
    (checkpoints.folder / "30.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.steps() == [10]
    checkpoints.clean(checkpoints.newest())
    assert "20 was not finished; removing it" in capsys.readouterr().err
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["10"]


@pytest.mark.parametrize(
    "old, new", [("7", "7.again"), ("7.replaced", "7.again"), ("7.replaced", "7")]
)
def test_a_step_that_is_saved_again_is_there_at_each_moment(checkpoints, tmp_path, old, new):
    """What a kill leaves: before the first of two renamings, between them, and after them."""
    before, after = Progress(due=True), Progress(0.5, 7)
    for progress in (before, after):
        save(checkpoints, 7, progress=progress)
        assert checkpoints.restore(7, LIKE)[1] == progress
        shutil.copytree(checkpoints.folder / "7", tmp_path / str(progress.due))
    (checkpoints.folder / "7").rmtree()
    (tmp_path / "True").rename(checkpoints.folder / old)
    (tmp_path / "False").rename(checkpoints.folder / new)
    assert checkpoints.begin() == 7
    assert checkpoints.restore(7, LIKE)[1] == (after if new == "7" else before)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["7"]


def test_a_checkpoint_of_before_knows_of_no_evaluation_that_is_due(checkpoints, monkeypatch):
    fields = {"best": 0.5, "best_step": 3, "since": 4}
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "_asdict", lambda self: fields)
        save(checkpoints, 7)
    assert checkpoints.restore(7, LIKE)[1] == Progress(**fields, due=False)


@pytest.mark.parametrize("moment", ["damage", "restore", "best"])
def test_whoever_reads_beside_a_run_takes_the_next_checkpoint(moment, checkpoints, monkeypatch):
    """At the moment when it reads the newest checkpoint, the run saves two more, of which one is
    its best, and so removes what it had."""
    save(checkpoints, 5, progress=Progress(0.5, 5))
    save(checkpoints, 7, progress=Progress(0.5, 5))
    (true, writer), saved = (getattr(Checkpoints, moment), checkpoints), []

    def meanwhile(self, *of):
        if not saved:
            saved.extend([8, 9])
            for step in saved:
                save(writer, step, progress=Progress(0.6, 8))
            assert writer.steps() == [9, 8]
        return true(self, *of)

    monkeypatch.setattr(Checkpoints, moment, meanwhile)
    assert_same(checkpoint.tested(checkpoints.folder.parent, LIKE), state(8))


def test_others_may_use_absl(checkpoints, caplog):
    """While a run saves, nothing of Orbax's is shown, and everything of others."""
    orbax = logging.LogRecord("absl", 40, "/packages/orbax/checkpoint.py", 1, "orbax's", (), None)
    logging.getLogger("absl").handle(orbax)
    logging.getLogger("absl").warning("another's")
    assert [record.message for record in caplog.records] == ["another's"]


def test_what_is_not_wanted_is_not_read(checkpoints):
    save(checkpoints, 7)
    found, _ = checkpoints.restore(7, checkpoint.only(LIKE, lambda state: state.params["a"]))
    np.testing.assert_array_equal(found.params["a"], state(7).params["a"])
    assert (int(found.step), found.params["b"]) == (7, None)
    assert jax.tree.leaves((found.opt_state, found.extra)) == []


def test_a_damaged_best_checkpoint_is_named_and_the_last_state_used(checkpoints, capsys):
    progress = Progress(1.0, 10, 1)
    save(checkpoints, 10, 20, progress=progress)
    assert int(checkpoints.best(state(20), progress, LIKE).step) == 10
    (checkpoints.folder / "10" / "_METADATA").write_text("{}")
    assert int(checkpoints.best(state(20), progress, LIKE).step) == 20
    assert "10, the best, is damaged" in capsys.readouterr().err
    assert int(checkpoints.best(state(20), NO_SCORE, LIKE).step) == 20


def test_the_sums_are_those_of_the_shell_command(checkpoints):
    import subprocess

    save(checkpoints, 10)
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=checkpoints.folder / "10").returncode == 0


def test_a_state_of_another_shape_is_refused(checkpoints):
    save(checkpoints, 10)
    like = jax.eval_shape(lambda: state(0, size=999))
    with pytest.raises(UserError, match=r"state.params.a is \(\(1000,\), .*there, \(\(999,\)"):
        checkpoints.restore(10, like)


@pytest.mark.parametrize("before, after", [(1, 8), (8, 1), (8, 4)])
def test_a_checkpoint_is_restored_on_another_number_of_devices(checkpoints, before, after):
    sharding = devices.whole(devices.mesh(before))
    checkpoints.save(10, jax.device_put(state(10), sharding), Progress())
    checkpoints.wait()
    mesh = devices.mesh(after)
    restored, _ = checkpoints.restore(10, devices.layout(mesh, LIKE))
    assert_same(restored, state(10))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding.mesh == mesh and leaf.sharding.spec == PartitionSpec()


def test_progress_counts_evaluations_since_the_best():
    progress = Progress()
    for step, score in enumerate([0.5, 0.4, 0.5, float("nan"), 0.6, 0.1]):
        progress = progress.after(step, score)
    assert progress == Progress(0.6, 4, 1)
    tie = progress.after(6, 0.6)
    assert tie == Progress(0.6, 6, 2)  # the later state is the best one, but no better
    assert Progress().after(1, float("nan")) == Progress(-np.inf, -1, 1)
