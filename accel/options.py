"""Options that accelerators and devices declare, and how text and TOML values become theirs.

An `Option` is a name, a kind, a default and a help line. The same declaration serves ``-o kvm.hold=unsafe``,
a workload file and `accelctl list`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from attrs import frozen

from accel.address import format_size, parse_size
from accel.errors import AddressError, OptionError

Kind = Literal["int", "size", "bool", "str", "choice", "list"]

_TRUE = frozenset({"true", "on", "yes", "1"})
_FALSE = frozenset({"false", "off", "no", "0"})
#: How a ``list`` without items is written as text.
_NONE = "none"


@frozen
class Option:
    """One declared option.

    Attributes:
        name: As it is written in TOML and on the command line.
        kind: ``int``, ``size`` (bytes, units allowed), ``bool``, ``str``, ``choice``, or ``list`` (a list or text with
            commas between its items; ``none`` is an empty one).
        default: The value where none is given.
        help: One line.
        choices: The values of a ``choice``.
        minimum: Least value of an ``int`` or ``size``.
        maximum: Greatest value of an ``int`` or ``size``.
        item: Makes of an item of a ``list`` what the owner wants to have; raises ValueError with what is wrong.
        whole: Whether a value stands for a whole ``list`` as it is, for those who give options from Python.
    """

    name: str
    kind: Kind
    default: object
    help: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    item: Callable[[object], object] = str
    whole: Callable[[object], bool] | None = None

    def parse(self, where: str, value: object) -> object:
        """Return `value`, given as text or as a TOML value, as this option's own type.

        Raises:
            OptionError: It is of the wrong type or out of range; `where` names the owner in the message.
        """
        if self.kind == "choice":
            if value not in self.choices:
                raise OptionError(where, self.name, value, f"must be one of {', '.join(self.choices)}")
            return value
        if self.kind == "str":
            if not isinstance(value, str):
                raise OptionError(where, self.name, value, "must be text")
            return value
        if self.kind == "bool":
            return self._bool(where, value)
        if self.kind == "list":
            return self._list(where, value)
        return self._number(where, value)

    def _bool(self, where: str, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise OptionError(where, self.name, value, "must be true or false")

    def _list(self, where: str, value: object) -> object:
        if self.whole is not None and self.whole(value):
            return value
        items = value
        if isinstance(value, str):
            items = [] if value == _NONE else [one.strip() for one in value.split(",")]
        if not isinstance(items, (list, tuple)):
            raise OptionError(where, self.name, value, "must be a list, or a text with commas between its items")
        made = []
        for one in items:
            try:
                made.append(self.item(one))
            except ValueError as error:
                raise OptionError(where, self.name, one, str(error)) from error
        return tuple(made)

    def _number(self, where: str, value: object) -> int:
        problem = "must be a size such as 64M" if self.kind == "size" else "must be a whole number"
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise OptionError(where, self.name, value, problem)
        try:
            if self.kind == "size":
                number = parse_size(value)
            else:
                number = value if isinstance(value, int) else int(value, 0)
        except (AddressError, ValueError) as error:
            raise OptionError(where, self.name, value, problem) from error
        if self.minimum is not None and number < self.minimum:
            raise OptionError(where, self.name, value, f"must be at least {self._shown(self.minimum)}")
        if self.maximum is not None and number > self.maximum:
            raise OptionError(where, self.name, value, f"must be at most {self._shown(self.maximum)}")
        return number

    def _shown(self, limit: int) -> str:
        return format_size(limit) if self.kind == "size" else str(limit)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return advice for an unknown `name`: the nearest known one, or all of them.

    >>> nearest("serail", ["serial", "cmos"])
    "did you mean 'serial'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are: {', '.join(names)}" if names else "there are none"


def parse_options(where: str, declared: Sequence[Option], given: Mapping[str, object]) -> dict[str, object]:
    """Return a value for every declared option: the given one, parsed, or the default.

    Raises:
        OptionError: A given name is not declared, or its value does not fit.
    """
    by_name = {option.name: option for option in declared}
    for name, value in given.items():
        if name not in by_name:
            raise OptionError(where, name, value, f"no such option; {nearest(name, by_name)}")
    return {
        name: option.parse(where, given[name]) if name in given else option.default for name, option in by_name.items()
    }
