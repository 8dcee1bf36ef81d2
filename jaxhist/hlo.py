"""What a compiled program does in one run, read from its text.

The compiler's own totals (`cost_analysis`) count the body of a loop once; here it counts as often
as it runs. Understood is the text of scheduled programs for TPUs, which has the compiler's estimate
of cycles beside each kernel.
"""

import math
import re
from collections import defaultdict
from functools import cache
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}  # others end with their number of bits
SENT = {  # bytes that one of n devices sends, for b bytes of output
    "all-reduce": lambda b, n: 2 * b * (n - 1) / n,
    "all-gather": lambda b, n: b * (n - 1) / n,
    "reduce-scatter": lambda b, n: b * (n - 1),
    "all-to-all": lambda b, n: b * (n - 1) / n,
    "collective-permute": lambda b, n: b,
}
# These only give names to what is in memory already, or run what is counted by itself.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"}
NESTED = {"while", "conditional", "call"}


class Totals(NamedTuple):
    """Of one device in one run of the program."""

    cycles: float = 0  # of its kernels, as the compiler estimates them
    moved: float = 0  # bytes read from its main memory and written there
    sent: float = 0  # bytes to other devices

    def plus(self, other: "Totals", times: int = 1) -> "Totals":
        return Totals(*(a + times * b for a, b in zip(self, other, strict=True)))


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
    """Of a program for so many devices, as `compiled.as_text()` gives it."""
    computations, entry = _parse(text)

    @cache
    def of(name: str) -> Totals:
        body = computations[name]
        shapes = {each.name: each.shape for each in body}
        total, channels = Totals(), dict(_collectives(name))
        for each in body:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', each.rest)
            total = total.plus(Totals(cycles=int(cycles[1]) if cycles else 0))
            if each.opcode == "while":
                total = total.plus(of(each.called("body")), _trips(each.called("condition")))
            elif each.opcode == "conditional":
                names = re.findall(r"%([\w.-]+)", _braced(each.rest, "branch_computations"))
                names = names or [each.called("true_computation"), each.called("false_computation")]
                total = total.plus(max(map(of, names)))
            elif each.opcode == "call":
                total = total.plus(of(each.called("to_apply")))
            elif each.opcode not in FREE and not each.opcode.endswith("-done"):
                total = total.plus(Totals(moved=_moved(each, shapes)))
        return total.plus(Totals(sent=sum(channels.values())))

    def _collectives(name: str):
        """(channel, bytes sent) of a computation and its fusions. One that is spread over several
        fusions, to run beside other work, stands in each of them, with the same channel."""
        for each in computations[name]:
            kind = each.opcode.removesuffix("-start")
            if kind in SENT:
                channel = re.search(r"channel_id=(\d+)", each.rest)
                sizes = _sizes(each.shape, everywhere=True)
                size = sum(sizes) if kind == "all-reduce" else max(sizes, default=0)
                sent = SENT[kind](size, max(_group(each.rest, devices), 1))
                yield (channel[1] if channel else each.name), sent
            elif each.opcode in ("fusion", "async-start"):
                yield from _collectives(each.called("calls"))

    def _trips(name: str) -> int:
        """A loop counts from 0 to the constant in its condition."""
        body = list(computations[name])
        body += [
            i
            for each in body
            if each.opcode == "fusion"
            for i in computations[each.called("calls")]
        ]
        numbers = [
            int(n) for i in body if i.opcode == "constant" for n in i.operands if n.isdigit()
        ]
        return max(numbers, default=1)

    def _moved(each: Instruction, shapes: dict[str, str]) -> float:
        if each.opcode == "dynamic-update-slice":  # in place
            return 2 * sum(_sizes(shapes[each.operands[1]]))
        if each.opcode in ("slice", "dynamic-slice"):
            return sum(_sizes(each.shape, everywhere=True)) + sum(_sizes(each.shape))
        if each.opcode == "slice-start":  # ((source), slice, context)
            return _sizes(each.shape, everywhere=True)[-2]
        if each.opcode.endswith("-start"):  # its shape has what is read beside what is written
            return sum(_sizes(each.shape))
        inside = computations[each.called("calls")] if each.opcode == "fusion" else ()
        users = defaultdict(list)
        for i in inside:
            for place, operand in enumerate(i.operands):
                users[operand].append((place, i))
        within = {i.name: i.shape for i in inside}
        parameters = {int(i.operands[0]): i.name for i in inside if i.opcode == "parameter"}
        total, outputs = 0.0, _sizes(each.shape)
        for place, operand in enumerate(each.operands):
            sizes, used = _sizes(shapes.get(operand, "")), users[parameters.get(place, "")]
            kinds = {(i.opcode, where) for where, i in used}
            if kinds == {("dynamic-slice", 0)}:  # only that much of it is read
                sizes = [sum(_sizes(i.shape, everywhere=True)) for _, i in used]
            elif kinds == {("dynamic-update-slice", 0)}:  # only that much of it is written
                for size in sizes:
                    if size in outputs:
                        outputs.remove(size)
                sizes = [sum(_sizes(within[i.operands[1]], everywhere=True)) for _, i in used]
            total += sum(sizes)
        return total + sum(outputs)

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
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return BYTES.get(dtype) or (max(int(bits[1]) // 8, 1) if bits else 0)


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


def _braced(rest: str, attribute: str) -> str:
    found = re.search(rf"\b{attribute}=\{{(.*?)\}}", rest)
    return found[1] if found else ""
