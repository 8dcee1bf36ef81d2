"""What the numbers of a configuration may be, written as the types of its fields.

steps: NonNegativeInt = 600
widths: tuple[PositiveInt, ...] = (256, 256)
"""

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from jaxhist import UserError


@dataclass(frozen=True)
class AtLeast:
    """Stands in the type of a field: its number, or each of its numbers, is not smaller."""

    least: int


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]


def check(config: Any):
    """Raise UserError if a number of a configuration, a dataclass, is too small for its type."""
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        numbers = [getattr(config, name)]
        if get_origin(kind) is tuple:
            (numbers,), (kind, *_) = numbers, get_args(kind)
        for bound in getattr(kind, "__metadata__", ()):
            for number in numbers:
                if number < bound.least:
                    raise UserError(f"{name} must be at least {bound.least}, not {number}")
