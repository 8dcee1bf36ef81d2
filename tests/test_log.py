import dataclasses
import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxhist import UserError, log
from jaxhist.finite import NEVER, NonFinite

IDENTITY = {"experiment": "x", "config": {"depth": 20, "sizes": (1, 2)}, "seed": 0}


@pytest.fixture
def make(tmp_path):
    logs = []

    def make(start=0, peak=None, steps=10, due=False):
        header = {**IDENTITY, "starts": [{"step": 0}]}
        logs.append(log.Log(tmp_path, header, start, steps, 1000, peak, due))
        return logs[-1]

    yield make
    for each in logs:
        each.close()


def metrics(loss, nonfinite=NEVER, **more):
    return {"loss": jnp.float32(loss), "nonfinite": jnp.int32(nonfinite), **more}


def test_a_line_is_written_one_call_later(make, tmp_path):
    writer = make()
    writer.train(1, metrics(0.5))
    assert len(log.read(tmp_path)) == 1
    writer.train(2, metrics(0.25))
    assert log.read(tmp_path)[1]["loss"] == 0.5
    writer.flush()
    writer.flush()
    assert [line["step"] for line in log.read(tmp_path)[1:]] == [1, 2]


def test_a_resumed_log_is_cut_back_to_the_checkpoint(make, tmp_path):
    writer = make()
    for step in range(1, 8):
        writer.write("train", step, {"loss": float(step)})
        if step % 2 == 0:
            writer.write("evaluate", step, {"loss": float(step)})
    writer.write("test", 2, {"loss": 0.0})
    with (tmp_path / log.FILE).open("a") as file:
        file.write('{"step": 8, "pha')  # torn by a kill
    assert len(log.read(tmp_path)) == 12
    make(start=4).write("train", 5, {"loss": 50.0})
    lines = [(line["phase"], line["step"], line["loss"]) for line in log.read(tmp_path)[1:]]
    assert lines == [
        ("train", 1, 1.0),
        ("train", 2, 2.0),
        ("evaluate", 2, 2.0),
        ("train", 3, 3.0),
        ("train", 4, 4.0),
        ("evaluate", 4, 4.0),
        ("train", 5, 50.0),
    ]


def test_every_line_is_json_for_any_reader(make, tmp_path):
    make().write("evaluate", 1, {"score": float("nan"), "other": float("inf")})
    line = (tmp_path / log.FILE).read_text().splitlines()[1]
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"step": 1, "phase": "evaluate", "score": None, "other": None}


@dataclasses.dataclass(frozen=True)
class One:
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Other(One):
    pass


def test_of_types_with_the_same_fields_the_name_decides(tmp_path):
    header = lambda config: json.loads(json.dumps(log.identity("x", config)))
    for config in One(), Other():
        assert log.configuration(tmp_path, header(config), [One, Other]) == config
    with pytest.raises(UserError, match=r"another version of x, whose test_log\.Other has sizes"):
        log.configuration(tmp_path, header(Other()), [One])
    older = {name: value for name, value in header(Other()).items() if name != "type"}
    assert log.configuration(tmp_path, older, [One, Other]) == One()


def test_a_run_goes_on_as_the_type_that_it_is_or_as_any_where_it_is_older(tmp_path):
    older = {name: value for name, value in log.identity("x", One()).items() if name != "type"}
    for written, wanted in ((older, Other()), (log.identity("x", One()), One())):
        header = {**written, "starts": [{"step": 0}]}
        (tmp_path / log.FILE).write_text(json.dumps(header) + "\n")
        with log.claim(tmp_path, log.identity("x", wanted)) as starts:
            assert len(starts) == 1
    says = r"type is 'test_log\.One' there, 'test_log\.Other' here"
    with pytest.raises(UserError, match=says), log.claim(tmp_path, log.identity("x", Other())):
        pass


def test_utilization_is_there_where_the_peak_is_known(make, tmp_path):
    for peak, expected in ((None, False), (1e6, True)):
        writer = make(peak=peak)
        writer.train(1, metrics(0.5, **{"count/tokens": jnp.int32(7)}))
        writer.flush()
        speed = log.read(tmp_path)[1]["speed"]
        assert ("utilization" in speed) == expected
        assert speed["tokens/s"] == pytest.approx(7 / speed["seconds/step"])
        if expected:
            assert speed["utilization"] == pytest.approx(speed["FLOP/s"] / peak)


class Running:
    """A step on the devices, which ends when the test says so."""

    def __init__(self):
        self.ended = threading.Event()

    def block_until_ready(self):
        self.ended.wait()


@pytest.mark.parametrize(
    ("ends", "waited"),
    [
        (1, 5),  # the devices are done already when the batch is asked for
        (4, 2),  # they are done before it is there
        (6, 0),  # at the same moment
        (None, 0),  # later
    ],
)
def test_waiting_is_from_the_end_of_a_step_until_the_batch_is_there(
    ends, waited, make, clock, tmp_path
):
    writer, running = make(), Running()
    clock.now = 1.0
    with writer.fetching(running):
        if ends:
            clock.now = ends
            running.ended.set()
            writer._watch.submit(int).result()  # it has looked at the clock
        clock.now = 6.0
    running.ended.set()
    clock.now = 10.0
    writer.train(1, metrics(0.5))
    writer.flush()
    speed = log.read(tmp_path)[1]["speed"]
    assert (speed["seconds/step"], speed["waiting"]) == (10, waited / 10)


def test_a_loss_that_is_not_finite_is_not_logged(make, tmp_path):
    writer = make()
    writer.train(3, metrics(float("nan"), nonfinite=2))
    with pytest.raises(NonFinite) as error:
        writer.flush()
    assert error.value.step == 2
    assert len(log.read(tmp_path)) == 1


def test_tensorboard_reads_the_events(make, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    make().write("evaluate", 3, {"loss": 0.25})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    (value,) = events[-1].summary.value
    assert (events[-1].step, value.tag, value.simple_value) == (3, "evaluate/loss", 0.25)


def test_a_directory_of_another_run_is_refused_and_the_differences_named(make, tmp_path):
    make()
    other = {"experiment": "x", "config": {"depth": 56, "sizes": (1, 2)}, "seed": 1}
    with pytest.raises(UserError, match="depth is 20 there, 56 here; seed is 0 there, 1 here"):
        log.claim(tmp_path, other).__enter__()
    with log.claim(tmp_path, IDENTITY) as starts:
        assert starts == [{"step": 0}]


def test_a_directory_without_a_run_is_new(tmp_path):
    with log.claim(tmp_path / "a" / "b", IDENTITY) as starts:
        assert starts == []


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "not json\n", '{"config": {}}'])
def test_a_file_that_is_not_a_log_is_refused(text, tmp_path):
    (tmp_path / log.FILE).write_text(text)
    with pytest.raises(UserError, match="not the log of a run"):
        log.read(tmp_path)


@pytest.mark.parametrize(
    "value, text",
    [
        (0.012346, "0.01235"),
        (56.78, "56.78"),
        (9999.0, "9999"),
        (41.5e9, "41.5G"),
        (32100, "32.1k"),
        (None, "nan"),
        (1, "1"),
    ],
)
def test_numbers_for_people(value, text):
    assert log._short(value) == text


def test_pictures_become_pngs_and_films_gifs(make, tmp_path):
    random = np.random.default_rng(0)
    film = 255 * random.integers(0, 2, (5, 8, 6, 3), np.uint8)
    make().write(
        "test", 1, {"score": 1.0, "film": film, "last": film[-1], "grey": film[0, ..., :1]}
    )
    (line,) = log.read(tmp_path)[1:]
    assert line == {"step": 1, "phase": "test", "score": 1.0}
    for name, picture in (("last", film[-1]), ("grey", film[0, ..., 0])):
        with Image.open(tmp_path / f"{name}.png") as image:
            np.testing.assert_array_equal(np.array(image), picture)
    with Image.open(tmp_path / "film.gif") as moving:
        assert (moving.n_frames, moving.info["duration"], moving.info["loop"]) == (5, 100, 0)
        for index, frame in enumerate(film):
            moving.seek(index)
            np.testing.assert_array_equal(np.array(moving.convert("RGB")), frame)


@pytest.mark.parametrize(
    "workdir, says",
    [
        ("gs://somewhere/run", "gs://somewhere/run is not a directory; mount the bucket"),
        ("two\nlines", "'two.nlines' is no name for a directory"),
    ],
)
def test_what_is_no_directory(workdir, says):
    with pytest.raises(UserError, match=says):
        log.claim(workdir, IDENTITY).__enter__()
