"""What a compiled program does in one run, read from its text.

The compiler's own totals (`cost_analysis`) count the body of a loop once; here it counts as often
as it runs. Understood is the text of scheduled programs for TPUs, which has the compiler's estimate
of cycles beside each kernel.
"""

import math
import re
from functools import cache
from typing import NamedTuple

# Bytes that one of n devices sends in a ring, for b bytes of output.
SENT = {
    "all-reduce": lambda b, n: 2 * b * (n - 1) / n,
    "all-gather": lambda b, n: b * (n - 1) / n,
    "reduce-scatter": lambda b, n: b * (n - 1),
    "all-to-all": lambda b, n: b * (n - 1) / n,
    "collective-permute": lambda b, n: b,
}
# These only name what is in memory already.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"}


class Totals(NamedTuple):
    """Of one device in one run of the program."""

    cycles: float = 0  # of its kernels, as the compiler estimates them
    moved: float = 0  # bytes read from its main memory and written there
    sent: float = 0  # bytes to other devices

    def plus(self, other: "Totals", times: int = 1) -> "Totals":
        return Totals(*(a + times * b for a, b in zip(self, other, strict=True)))


class _Part(NamedTuple):
    size: int  # bytes
    in_place: bool  # whether it is written


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # its attributes

    def called(self, attribute: str) -> str:
        """The computation that an attribute, such as `body`, names."""
        found = re.search(rf"\b{attribute}=%([\w.-]+)", self.rest)
        return found[1] if found else ""


def totals(text: str, devices: int) -> Totals:
    """Of a program for so many devices, as `compiled.as_text()` gives it.

    A loop whose end is not a constant counts once.
    """
    computations, entry = _parse(text)

    @cache
    def of(name: str) -> Totals:
        shapes = {each.name: each.shape for each in computations[name]}
        total = Totals(sent=sum(dict(_collectives(name)).values()))
        for each in computations[name]:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', each.rest)
            total = total.plus(Totals(cycles=int(cycles[1]) if cycles else 0))
            if each.opcode == "while":
                total = total.plus(of(each.called("body")), _trips(each.called("condition")))
            elif each.opcode == "conditional":
                names = re.search(r"branch_computations=\{(.*?)\}", each.rest)
                branches = re.findall(r"%([\w.-]+)", names[1] if names else "")
                branches = branches or [
                    each.called(f"{way}_computation") for way in ("true", "false")
                ]
                total = total.plus(max(map(of, branches)))
            elif each.opcode == "call":
                total = total.plus(of(each.called("to_apply")))
            else:
                total = total.plus(Totals(moved=_moved(each, shapes)))
        return total

    def _collectives(name: str):
        """(channel, bytes sent) of a computation and its fusions. One that is spread over several
        fusions, to run beside other work, stands in each of them, with the same channel."""
        for each in computations[name]:
            kind, sizes = each.opcode.removesuffix("-start"), _sizes(each.shape, everywhere=True)
            inside = each.called("calls")
            if kind in SENT:
                # What is started has the operand beside the result.
                size = max(sizes) if each.opcode != kind and kind != "all-reduce" else sum(sizes)
                yield _channel(each), SENT[kind](size, _group(each.rest, devices))
            elif each.opcode == "fusion" and inside.startswith("all-reduce-scatter"):
                (whole,) = [i for i in computations[inside] if i.opcode == "all-reduce"]
                yield (
                    _channel(whole),
                    SENT["reduce-scatter"](sum(sizes), _group(whole.rest, devices)),
                )
            elif each.opcode in ("fusion", "async-start"):
                yield from _collectives(inside)

    def _trips(condition: str) -> int:
        """A loop counts from 0 to the constant that its counter is compared with."""
        body = computations[condition]
        body = body + [i for each in body for i in computations.get(each.called("calls"), [])]
        constants = {i.name: i.operands[0] for i in body if i.opcode == "constant"}
        ends = [
            constants[o]
            for i in body
            if i.opcode == "compare"
            for o in i.operands
            if o in constants
        ]
        if not ends:  # the comparison is a fusion, which gets the constant from outside
            ends = [n for n in constants.values() if n.isdigit()]
        return int(ends[0]) if len(ends) == 1 and ends[0].isdigit() else 1

    def _moved(each: Instruction, shapes: dict[str, str]) -> float:
        """Bytes between the main memory and the chip."""
        on_the_way = 'custom_call_target="AllocateBuffer"' in each.rest
        if each.opcode in FREE or each.opcode.endswith("-done") or on_the_way:
            return 0
        read = lambda place: sum(_sizes(shapes.get(each.operands[place], "")))
        written, all_of_it = sum(_sizes(each.shape)), _sizes(each.shape, everywhere=True)
        if each.opcode == "dynamic-update-slice":  # in place
            update = sum(_sizes(shapes[each.operands[1]], everywhere=True))
            return read(1) + (update if written else 0)
        if each.opcode in ("slice", "dynamic-slice"):
            return (sum(all_of_it) if read(0) else 0) + written
        if each.opcode == "slice-start":  # ((source), slice, context)
            return all_of_it[-2]
        if each.opcode.endswith("-start"):  # its shape has the operand beside the result
            return written
        places = _parameters(each.called("calls")) if each.opcode == "fusion" else {}
        for place in range(len(each.operands)):
            whole = read(place)
            part = _used(each.called("calls"), places[place]) if whole and places else None
            if part and part.in_place:
                written -= whole  # the result is that same array
            written += min(part.size, whole) if part else whole
        return written

    def _parameters(computation: str) -> dict[int, str]:
        body = computations[computation]
        return {int(i.operands[0]): i.name for i in body if i.opcode == "parameter"}

    @cache
    def _used(computation: str, name: str) -> _Part | None:
        """Which part of an array a fusion reads or writes, if not all of it."""
        shapes = {i.name: i.shape for i in computations[computation]}
        size, in_place = 0, False
        for i in computations[computation]:
            for place, operand in enumerate(i.operands):
                if operand != name:
                    continue
                if i.opcode == "dynamic-slice" and place == 0:
                    inner = _Part(sum(_sizes(i.shape, everywhere=True)), False)
                elif i.opcode == "dynamic-update-slice" and place == 0:
                    inner = _Part(sum(_sizes(shapes[i.operands[1]], everywhere=True)), True)
                elif i.opcode == "fusion":
                    inner = _used(i.called("calls"), _parameters(i.called("calls"))[place])
                elif i.opcode == "bitcast":
                    inner = _used(computation, i.name)
                else:
                    inner = None
                if inner is None:
                    return None
                size, in_place = size + inner.size, in_place or inner.in_place
        return _Part(size, in_place)

    return of(entry)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations by name, and the name of the one that is run."""
    computations, entry, body = {}, "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            body = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := re.match(
            r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)\)(.*)", line
        ):
            name, shape, opcode, operands, rest = found.groups()
            operands = re.sub(r"/\*.*?\*/", "", operands)
            operands = tuple(o.strip().split(" ")[-1].lstrip("%") for o in operands.split(","))
            body.append(Instruction(name, shape, opcode, operands, rest))
    return computations, entry


def _sizes(shape: str, everywhere: bool = False) -> list[int]:
    """The bytes of each array in a shape: of those in main memory (space 0), or of all."""
    found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?", shape)
    return [
        math.prod(map(int, filter(None, dims.split(",")))) * _bytes(dtype)
        for dtype, dims, layout in found
        if everywhere or not re.search(r"S\([1-9]\)", layout)
    ]


def _bytes(dtype: str) -> int:
    """The names of all types but truth values have their bits."""
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return max(int(bits[1]) // 8, 1) if bits else int(dtype == "pred")


def _channel(each: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", each.rest)
    return found[1] if found else each.name


def _group(rest: str, devices: int) -> int:
    """How many devices take part in a collective, in any of the three ways to write it."""
    groups = rest.partition("replica_groups=")[2]
    if found := re.match(r"\[(?:\d+,)*(\d+)\]<=", groups):
        return int(found[1])
    if found := re.match(r"mesh\[(.*?)\].*? \{(.*?)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]))
    if found := re.match(r"\{\{([\d,]+)\}", groups):
        return len(found[1].split(","))
    return devices
