"""Option: each kind's parsing, limits, and what is said about a value that does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import OptionError
from accel.options import Option, nearest, parse_options

COUNT = Option("count", "int", 4, "how many", minimum=1, maximum=64)
ROOM = Option("room", "size", 1 << 20, "how much", minimum=4096, maximum=1 << 30)
FLAG = Option("flag", "bool", False, "whether")
NAME = Option("name", "str", "x", "which")
PLAN = Option("plan", "choice", "least", "how", choices=("least", "replace"))
NUMBERS = Option(
    "numbers",
    "list",
    "none",
    "which ones",
    item=lambda one: int(str(one)),
    whole=lambda one: isinstance(one, frozenset),
)
ALL = (COUNT, ROOM, FLAG, NAME, PLAN)


@pytest.mark.parametrize(
    ("option", "given", "value"),
    [
        (COUNT, 1, 1),
        (COUNT, "64", 64),
        (COUNT, "0x10", 16),
        (ROOM, "64K", 65536),
        (ROOM, 4096, 4096),
        (ROOM, "1G", 1 << 30),
        (FLAG, True, True),
        (FLAG, "on", True),
        (FLAG, "Yes", True),
        (FLAG, "1", True),
        (FLAG, "true", True),
        (FLAG, "OFF", False),
        (FLAG, "no", False),
        (FLAG, "0", False),
        (FLAG, "false", False),
        (NAME, "", ""),
        (PLAN, "replace", "replace"),
        (NUMBERS, "none", ()),
        (NUMBERS, [], ()),
        (NUMBERS, "7", (7,)),
        (NUMBERS, "1, 2,3", (1, 2, 3)),
        (NUMBERS, ["1", 2], (1, 2)),
        (NUMBERS, frozenset({5}), frozenset({5})),
    ],
)
def test_option_parse_of_a_value_that_fits(option: Option, given: object, value: object) -> None:
    found = option.parse("device.d", given)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("option", "given", "problem"),
    [
        (COUNT, 0, "must be at least 1"),
        (COUNT, "65", "must be at most 64"),
        (Option("ports", "int", 1, "how many", maximum=1 << 16), 1 << 17, "must be at most 65536"),
        (COUNT, True, "must be a whole number"),
        (COUNT, 1.0, "must be a whole number"),
        (COUNT, "four", "must be a whole number"),
        (COUNT, "9" * 5000, "must be a whole number"),
        pytest.param(COUNT, 1 << 20000, "must be at most 64", id="huge"),
        (COUNT, None, "must be a whole number"),
        (ROOM, "1K", "must be at least 4K"),
        (ROOM, 2 << 30, "must be at most 1G"),
        (ROOM, "much", "must be a size such as 64M"),
        (ROOM, -1, "must be a size such as 64M"),
        (ROOM, False, "must be a size such as 64M"),
        (FLAG, 1, "must be true or false"),
        (FLAG, "maybe", "must be true or false"),
        (NAME, 5, "must be text"),
        (PLAN, "best", "must be one of least, replace"),
        (PLAN, ["least"], "must be one of least, replace"),
        (NUMBERS, 5, "must be a list, or a text with commas between its items"),
        (NUMBERS, {"a": 1}, "must be a list, or a text with commas between its items"),
        (NUMBERS, set(), "must be a list, or a text with commas between its items"),
    ],
)
def test_option_parse_of_a_value_that_does_not_fit_names_it(option: Option, given: object, problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        option.parse("device.d", given)
    error = caught.value
    assert (error.where, error.option, error.value, error.problem) == ("device.d", option.name, given, problem)
    assert str(error).startswith(f"device.d.{option.name} = ")
    assert str(error).endswith(problem)
    assert len(str(error)) < 250


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(ALL), JUNK)
def test_option_parse_raises_nothing_but_option_error(option: Option, value: object) -> None:
    try:
        found = option.parse("device.d", value)
    except OptionError:
        return
    if option.kind in ("int", "size"):
        assert option.minimum <= found <= option.maximum


def test_parse_options_fills_in_defaults_and_keeps_the_declared_order() -> None:
    found = parse_options("device.d", ALL, {"plan": "replace", "count": "5"})
    assert list(found.items()) == [
        ("count", 5), ("room", 1 << 20), ("flag", False), ("name", "x"), ("plan", "replace"),
    ]  # fmt: skip


def test_parse_options_of_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(OptionError, match="no such option; did you mean 'count'") as caught:
        parse_options("accelerator.kvm", ALL, {"counts": 5})
    assert (caught.value.where, caught.value.option, caught.value.value) == ("accelerator.kvm", "counts", 5)


def test_nearest_lists_what_is_known_where_nothing_is_near() -> None:
    assert nearest("zzz", ["b", "a"]) == "known are: a, b"
    assert nearest("zzz", []) == "there are none"
    assert nearest("serail", ["serial", "cmos"]) == "did you mean 'serial'?"


def test_option_list_with_an_item_that_does_not_fit_names_the_item() -> None:
    with pytest.raises(OptionError) as caught:
        NUMBERS.parse("device.d", "1,two,3")
    assert (caught.value.value, caught.value.problem) == ("two", "invalid literal for int() with base 10: 'two'")
