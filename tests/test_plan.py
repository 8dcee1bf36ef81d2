"""What a program is said to need on a machine that is not here."""

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys

import forked
import pytest

from experiments import gpt
from jaxhist import UserError, chips, devices, hlo, plan
from jaxhist.chips import GIB, Slice
from jaxhist.devices import Axes
from jaxhist.train import Run

H100 = chips.CHIPS["h100"]
TINY = dataclasses.replace(
    gpt.PRESETS["small"], data="letters", vocabulary=264, layers=2, width=32, heads=4, length=32
)


def made(config=TINY, axes=devices.WHOLE, chip=H100, count=8):
    return plan.make(gpt.build, config, Run(mesh=axes), Slice(chip, count, None))


def test_the_state_on_each_chip():
    """Parameters of 4 bytes, two moments of each, and the step of two counters."""
    whole = made()
    model = 12 * 32**2 * 2 + 2 * (9 * 32 + 4 * 32) + 264 * 32 + 32 * 32 + 2 * 32
    assert whole.memory["params"] == 4 * model
    assert whole.memory["opt_state"] == 2 * 4 * model + 4 * 2
    assert whole.memory["batch"] == 32 * 33 * 4 // 8
    assert whole.needed == sum(whole.memory.values()) and not whole.refused
    split = made(axes=Axes(fsdp=8))
    assert whole.memory["params"] / 8 <= split.memory["params"] < whole.memory["params"] / 4
    assert split.memory["batch"] == whole.memory["batch"]


def test_the_products_take_their_time():
    one, eight = made(count=1), made()
    assert one.flops == eight.flops
    assert one.seconds == {"products": pytest.approx(one.flops / 989e12)}
    assert eight.step == pytest.approx(one.step / 8)
    assert eight.days == pytest.approx(eight.step * TINY.steps / 86400)


def test_a_state_that_is_too_large_alone():
    small = H100._replace(memory=1000.0)
    refused = made(chip=small)
    assert "what a checkpoint holds is too much" in refused.refused
    assert refused.needed == made().needed


def test_what_is_tried():
    """Over as few as leave half free, over all, products over 1, 2, 4; then computed again; then in
    four parts; in sixteen, of two rows, only where they are split over two."""
    where = Slice(H100._replace(memory=float(made().needed)), 8, None)
    found = [
        (c.remat, c.parts, on.mesh) for c, on in plan.candidates(gpt.build, TINY, Run(), where)
    ]
    # Four heads can be split over 4 devices, not over 8.
    meshes = [Axes(0, 4, 1), Axes(0, 8, 1), Axes(0, 2, 2), Axes(0, 4, 2), Axes(0, 1, 4)]
    meshes += [Axes(0, 2, 4)]
    ways = (False, 1), (True, 1), (True, 4)
    want = [(*way, mesh) for way in ways for mesh in meshes]
    assert found == want + [(True, 16, mesh) for mesh in meshes[-2:]]
    changes = {" ".join(plan._changes(TINY, config)) for config in plan._with_less(TINY)}
    assert changes == {"", "--remat", "--remat --parts 4", "--remat --parts 16"}


@pytest.mark.parametrize(
    ("error", "temporaries", "largest"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (54.50G) exceeds available HBM (15.75G).",
            round(54.5 * GIB) - 100,
            "too much",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.\n\n"
            "Total hbm usage >= 20.76G\n  Largest program allocations in hbm:\n\n  1. Size: 8.00G\n"
            '     Operator: op_name="jit(update)/attend/softmax"\n'
            "     Shape: f32[64,16,1024,2048]{3,2,1,0:T(8,128)}\n     Unpadded size: 8.00G\n",
            round(20.5 * GIB) - 100,
            "f32[64,16,1024,2048] of 8.00G, is of jit(update)/attend/softmax",
        ),
    ],
)
def test_the_compilers_reason_in_plain_words(error, temporaries, largest):
    known = plan.Plan(1, {"params": 100}, 16 * GIB, 0, {"products": 0.0})
    refused = plan._refused(known, error)
    assert refused.memory == {"params": 100, "temporaries": temporaries}
    assert largest in refused.refused


def test_another_error_of_the_compiler():
    known = plan.Plan(1, {"params": 100}, 16 * GIB, 0, {"products": 0.0})
    with pytest.raises(UserError, match="the compiler fails: INTERNAL: no idea"):
        plan._refused(known, "INTERNAL: no\n  idea")
    with pytest.raises(UserError, match=r"the compiler fails: .* vmem"):  # a memory within the chip
        plan._refused(known, "RESOURCE_EXHAUSTED: Used 130.00M of 128.00M vmem")


def test_a_search_goes_on_until_something_fits(monkeypatch, capsys):
    known = plan.Plan(1, {"params": 100}, 16 * GIB, 0, {"products": 0.0}, compiling=1.0)
    refused = dataclasses.replace(known, refused="too much")
    answers = iter([refused, UserError("the compiler fails"), known])

    def make(*arguments):
        answer = next(answers)
        if isinstance(answer, UserError):
            raise answer
        return answer

    where, run = Slice(H100, 8, None), Run()
    ways = [(TINY, Run(mesh=Axes(fsdp=n))) for n in (2, 4, 8)] + [None]
    monkeypatch.setattr(plan, "candidates", lambda *_: iter(ways))
    monkeypatch.setattr(plan, "make", make)
    tried = list(plan.search(None, TINY, run, where))
    assert tried == [("--run.mesh.fsdp 2", refused), ("--run.mesh.fsdp 8", known)]
    assert "tried --run.mesh.fsdp 4: the compiler fails" in capsys.readouterr().out


def test_what_a_plan_does_not_take():
    with pytest.raises(UserError, match=r"leave --run\.devices away"):
        plan.make(gpt.build, TINY, Run(devices=4), Slice(H100, 8, None))
    with pytest.raises(UserError, match="a batch of 32 cannot be split over 8 devices in 16 parts"):
        made(dataclasses.replace(TINY, parts=16))


SCRIPTS = "alexnet", "dqn", "seq2seq", "attention", "adam", "gan", "googlenet", "resnet"
SCRIPTS += "identity_mappings", "transformer", "bert", "gpt", "simclr", "regression"


@pytest.mark.long
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_preset_is_planned_for(name):
    module = importlib.import_module(f"experiments.{name}")
    for preset, config in module.PRESETS.items():
        try:
            on = plan.make(module.build, config, Run(), Slice(H100._replace(memory=1e15), 1, None))
        except UserError as error:  # how many classes there are only its data says
            assert "prepare it" in str(error)
            continue
        assert on.flops > 0 and on.memory["params"] > 0 and not on.refused, preset


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:", "v5e:2x", "h100:0", "2x2"])
def test_no_such_machine(topology):
    with pytest.raises(UserError, match=r"no topology .* the chips are v4, v5e"):
        chips.named(topology)


def test_every_chip_has_a_peak():
    assert {chip.kind for chip in chips.CHIPS.values()} <= devices.PEAK_FLOPS.keys()


PROGRAM = """\
HloModule jit_update, is_scheduled=true

%condition (state: (s32[], f32[3,8])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[3,8]{1,0:T(8,128)}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %three), direction=LT
}

%slice_of_one (all: f32[3,8], i: s32[]) -> f32[8] {
  %all = f32[3,8]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,8]{1,0:T(8,128)} dynamic-slice(%all, %i.1, %zero), dynamic_slice_sizes={1,8}
  %gather.1 = f32[64]{0:T(128)} all-gather(%one), channel_id=7, replica_groups=[2,4]<=[8]
  ROOT %flat = f32[8]{0:T(128)} bitcast(%one)
}

%body (state: (s32[], f32[3,8])) -> (s32[], f32[3,8]) {
  %state.1 = (s32[]{:T(128)}, f32[3,8]{1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %all.1 = f32[3,8]{1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %row = f32[8]{0:T(128)} fusion(%all.1, %i.2), kind=kLoop, calls=%slice_of_one, \
backend_config={"window_config":{"estimated_cycles":"10"}}
  %again = f32[8]{0:T(128)S(1)} fusion(%all.1, %i.2), kind=kLoop, calls=%slice_of_one, \
backend_config={"window_config":{"estimated_cycles":"20"}}
  ROOT %next = (s32[]{:T(128)}, f32[3,8]{1,0:T(8,128)}) tuple(%i.2, %all.1)
}

%update (all: f32[3,8], row: f32[1,8], i: s32[]) -> f32[3,8] {
  %all.2 = f32[3,8]{1,0:T(8,128)} parameter(0)
  %row.2 = f32[1,8]{1,0:T(8,128)} parameter(1)
  %i.3 = s32[]{:T(128)} parameter(2)
  ROOT %put = f32[3,8]{1,0:T(8,128)} dynamic-update-slice(%all.2, %row.2, %i.3, %i.3)
}

%outer (all: f32[3,8], row: f32[1,8], i: s32[]) -> f32[3,8] {
  %all.3 = f32[3,8]{1,0:T(8,128)} parameter(0)
  %row.3 = f32[1,8]{1,0:T(8,128)} parameter(1)
  %i.4 = s32[]{:T(128)} parameter(2)
  ROOT %inner = f32[3,8]{1,0:T(8,128)} fusion(%all.3, %row.3, %i.4), kind=kLoop, calls=%update
}

%all-reduce-scatter.1 (x: f32[16]) -> f32[4] {
  %x.1 = f32[16]{0:T(128)} parameter(0)
  %whole = f32[16]{0:T(128)} all-reduce(%x.1), channel_id=3, replica_groups=[2,4]<=[8]
  %where = s32[]{:T(128)} constant(0)
  ROOT %mine = f32[4]{0:T(128)} dynamic-slice(%whole, %where), dynamic_slice_sizes={4}
}

ENTRY %main (x: bf16[4,8], y: f32[3,8], z: f32[1,8], i: s32[], g: f32[16]) -> bf16[4,8] {
  %z = f32[1,8]{1,0:T(8,128)} parameter(2)
  %i.5 = s32[]{:T(128)} parameter(3)
  %g = f32[16]{0:T(128)S(1)} parameter(4)
  %empty = f32[3,8]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %written = f32[3,8]{1,0:T(8,128)} fusion(%empty, %z, %i.5), kind=kLoop, calls=%outer
  %scattered = f32[4]{0:T(128)S(1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[3,8]{1,0:T(8,128)} parameter(1)
  %start = (s32[]{:T(128)}, f32[3,8]{1,0:T(8,128)}) tuple(%x, %y)
  %loop = (s32[]{:T(128)}, /*index=1*/f32[3,8]{1,0:T(8,128)}) while(%start), \
condition=%condition, body=%body
  %sum = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%condition
  %part = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} reduce-scatter(%sum), channel_id=2, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  ROOT %out = bf16[4,8]{1,0:T(8,128)(2,1)} copy(%sum), backend_config={"estimated_cycles":"5"}
}
"""


def test_what_a_program_does_counts_its_loops():
    """Three turns of the loop: each reads an index twice and one row of y twice, and writes one of
    two results (the other stays on the chip); one collective is spread over two kernels. Then a row
    is written in place, and there are three more collectives."""
    found = hlo.totals(PROGRAM, 8)
    assert found.cycles == 3 * (10 + 20) + 5
    loop, row = 3 * (2 * (4 + 32) + 32), 32 + 32 + 4
    assert found.moved == loop + row + 64 + 64  # the operand of the all-reduce, and the copy
    assert found.sent == 3 * 256 * 3 / 4 + 2 * 64 / 2 + 32 * 1 + 16 * 3


def test_a_loop_without_a_known_end_counts_once():
    program = PROGRAM.replace("%three = s32[]{:T(128)} constant(3)", "%three = s32[] negate(%i)")
    assert hlo.totals(program, 8).cycles == 10 + 20 + 5


def test_a_gpu_is_planned_for_from_shapes(tmp_path):
    """And so the command says, as a user gives it: a second process answers. It also writes its
    figures."""
    output = tmp_path / "plans.json"
    options = ["plan", "small", "--topology", "h100:8", "--output", output]
    process = subprocess.run(
        [sys.executable, "-m", "experiments.regression", *options], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "activations are not among it" in process.stdout and "8 x NVIDIA" in process.stdout
    ((name, figures),) = json.loads(output.read_text()).items()
    assert name == "python -m experiments.regression plan small --topology h100:8"
    assert figures["chips"] == 8 and figures["fits"] is None and figures["compiling"] is None
    assert set(figures["seconds"]) == {"products"}
    output.write_text("[")
    with pytest.raises(UserError, match="is not a file of plans"):
        plan._write(output, Slice(H100, 8, None), {})


def test_a_plan_needs_a_machine():
    process = forked.run("experiments.regression", "plan", "small")
    assert process.returncode == 2 and "--topology" in process.stderr


def command(module, *arguments):
    """What the process does that compiles."""
    return forked.run(module, *arguments, environment=plan.INSIDE)


compiles = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed: pip install '.[tpu]'"
)


@compiles
def test_a_step_is_compiled_for_tpus():
    process = command("experiments.regression", "plan", "small", "--topology", "v5e:2x2")
    assert process.returncode == 0, process.stderr
    assert "4 x TPU v5 lite" in process.stdout and "it fits" in process.stdout
    assert "all kernels but what is sent, as the compiler estimates" in process.stdout


@compiles
def test_what_does_not_fit_is_an_error_and_says_how_much_it_needs():
    process = command("experiments.gpt", "plan", "gpt3-175b", "--topology", "v5e:2x2")
    assert process.returncode == 1
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error")]
    assert "it needs 1,951.4 GiB on each chip, which has 16.0 GiB" in line


@compiles
@pytest.mark.long
def test_what_fits_and_what_does_not_need_memory_in_proportion(tmp_path):
    """The compiler says so in two ways: of what it has compiled, and of what it refuses."""
    output, temporaries = tmp_path / "plans.json", {}
    for batch, code in ((200_000, 0), (400_000, 1)):
        options = ["--widths", 8192, 8192, "--batch", batch, "--topology", "v5e:1x1"]
        process = command("experiments.adam", "plan", "small", *options, "--output", output)
        assert process.returncode == code, process.stderr
        plans = json.loads(output.read_text())
        (figures,) = (plans[name] for name in plans if str(batch) in name)
        assert figures["fits"] == (code == 0) == (figures["needed"] < figures["available"])
        temporaries[batch] = figures["memory"]["temporaries"]
    assert temporaries[400_000] == pytest.approx(2 * temporaries[200_000], rel=0.02)


@compiles
def test_no_such_slice():
    process = command("experiments.regression", "plan", "small", "--topology", "v5e:3x7")
    assert process.returncode == 1 and "there is no slice v5e:3x7" in process.stderr
