"""GuestProgram: the rules of its operations, its plain-data form and its text."""

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import ProgramError
from accel.program import (
    ERRORS,
    MAX_DEPTH,
    MAX_OPS,
    Add,
    Fetch,
    GuestProgram,
    Halt,
    In,
    Load,
    Loop,
    Op,
    Out,
    Store,
    text,
)


def _memory_op(size: int) -> st.SearchStrategy[Op]:
    address = st.integers(0, (1 << 64) - size)
    value = st.integers(0, (1 << 8 * size) - 1)
    return st.one_of(
        st.builds(Load, address, st.just(size), st.none() | value),
        st.builds(Store, address, value, st.just(size)),
        st.builds(Add, address.map(lambda a: a - a % size), value, st.just(size)),
    )


def _port_op(size: int) -> st.SearchStrategy[Op]:
    port = st.integers(0, 0x10000 - size)
    value = st.integers(0, (1 << 8 * size) - 1)
    return st.one_of(
        st.builds(In, port, st.just(size), st.none() | value),
        st.builds(Out, port, value | st.just(ERRORS), st.just(size)),
    )


def _ops(counts: st.SearchStrategy[int | None]) -> st.SearchStrategy[Op]:
    return st.recursive(
        st.sampled_from([1, 2, 4, 8]).flatmap(_memory_op)
        | st.sampled_from([1, 2, 4]).flatmap(_port_op)
        | st.builds(Fetch, st.integers(0, (1 << 64) - 1))
        | st.just(Halt()),
        lambda inner: st.builds(Loop, st.lists(inner, max_size=4), counts),
        max_leaves=12,
    )


OPS = _ops(st.none() | st.integers(1, (1 << 64) - 1))
FEW_TURNS = _ops(st.integers(1, 3))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["loop", "load", "out"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["op", "address", "port", "size", "value", "body", "text", "count"]), inner)
    ),
    max_leaves=20,
)


@given(st.lists(OPS, max_size=6))
def test_program_data_form_round_trips_through_json(ops: list[Op]) -> None:
    program = GuestProgram(ops)
    assert GuestProgram.from_data(json.loads(json.dumps(program.to_data()))) == program


@given(JSON | st.lists(st.fixed_dictionaries({"op": st.sampled_from(["loop", "load", "out", "text"])})))
def test_program_garbage_data_raises_only_program_error(data: object) -> None:
    try:
        GuestProgram.from_data(data)
    except ProgramError:
        pass


@pytest.mark.parametrize(
    ("data", "where", "field", "problem"),
    [
        ({"op": "halt"}, "program", "", "list of operations"),
        (["halt"], "program[0]", "", "must be a table"),
        ([{}], "program[0]", "op", "no such operation"),
        ([{"op": "halt"}, {"op": "lod"}], "program[1]", "op", "did you mean 'load'"),
        ([{"op": "load"}], "program[0]", "address", "is missing"),
        ([{"op": "load", "adress": 0}], "program[0]", "adress", "did you mean 'address'"),
        ([{"op": "load", "address": 0, "size": 3}], "program[0]", "size", "one of 1, 2, 4, 8"),
        ([{"op": "load", "address": 0, "size": True}], "program[0]", "size", "one of"),
        ([{"op": "load", "address": "0"}], "program[0]", "address", "whole number"),
        ([{"op": "load", "address": (1 << 64) - 3}], "program[0]", "address", "must be from 0"),
        ([{"op": "store", "address": 0, "value": -1}], "program[0]", "value", "must be from 0"),
        ([{"op": "store", "address": 0, "value": "errors"}], "program[0]", "value", "whole number"),
        ([{"op": "add", "address": 2, "size": 4}], "program[0]", "address", "multiple of the size"),
        ([{"op": "in", "port": 0, "size": 8}], "program[0]", "size", "one of 1, 2, 4"),
        ([{"op": "out", "port": 0xFFFF, "value": 0, "size": 2}], "program[0]", "port", "must be from 0"),
        ([{"op": "out", "port": 0, "value": 256}], "program[0]", "value", "to 0xff"),
        ([{"op": "text", "port": 0, "text": 3}], "program[0]", "text", "must be text"),
        ([{"op": "loop", "body": [], "count": 0}], "program[0]", "count", "must be from 1"),
        ([{"op": "loop", "body": [{"op": "fetch"}]}], "program[0].body[0]", "address", "is missing"),
        (
            [{"op": "loop", "body": [{"op": "fetch", "address": -1}]}],
            "program[0].body[0]",
            "address",
            "from 0",
        ),
    ],
)
def test_program_bad_data_names_operation_and_field(data: object, where: str, field: str, problem: str) -> None:
    with pytest.raises(ProgramError) as caught:
        GuestProgram.from_data(data)
    assert (caught.value.where, caught.value.field) == (where, field)
    assert problem in caught.value.problem
    assert where in str(caught.value)
    assert field in str(caught.value)


def test_program_bad_data_names_the_list_as_the_caller_calls_it() -> None:
    with pytest.raises(ProgramError, match=r"image\.program\[0\]\.address = 'x'"):
        GuestProgram.from_data([{"op": "load", "address": "x"}], "image.program")


@pytest.mark.parametrize("value", ["x" * 10_000_000, 1 << 100_000, [1 << 100_000]], ids=["text", "int", "list"])
def test_program_huge_values_give_short_errors(value: object) -> None:
    with pytest.raises(ProgramError) as caught:
        GuestProgram.from_data([{"op": "load", "address": value}])
    assert len(str(caught.value)) < 300


def test_program_bad_operation_object_is_refused() -> None:
    with pytest.raises(ProgramError, match=r"program\[1\]\.body\[0\].*is no operation"):
        GuestProgram([Halt(), Loop(["halt"], 1)])  # type: ignore[list-item]


def test_program_loops_nested_to_the_limit_pass_and_beyond_are_refused() -> None:
    op: Op = Halt()
    for _ in range(MAX_DEPTH):
        op = Loop([op], 1)
    data = GuestProgram([op]).to_data()
    with pytest.raises(ProgramError, match="nested deeper"):
        GuestProgram([Loop([op], 1)])
    with pytest.raises(ProgramError, match="nested deeper"):
        GuestProgram.from_data([{"op": "loop", "body": data}])


def test_program_deep_data_is_refused_without_recursion_error() -> None:
    data: list[object] = []
    for _ in range(100_000):
        data = [{"op": "loop", "body": data}]
    with pytest.raises(ProgramError, match="nested deeper"):
        GuestProgram.from_data(data)


def test_program_operations_are_counted_through_loops() -> None:
    body = [Halt()] * (MAX_OPS - 1)
    GuestProgram([Loop(body, 1)])
    with pytest.raises(ProgramError, match="more than"):
        GuestProgram([Loop(body, 1), Halt()])


def test_program_text_writes_each_byte_to_the_port() -> None:
    assert text(0xE9, b"hi") == (Out(0xE9, ord("h")), Out(0xE9, ord("i")))
    data = [{"op": "text", "port": 0xE9, "text": "hi"}]
    assert GuestProgram.from_data(data) == GuestProgram(text(0xE9, b"hi"))


def test_program_str_shows_each_operation() -> None:
    program = GuestProgram(
        [
            Loop([Store(0x1000, 7, 8), Loop([Add(0x2000)], None)], 3),
            Load(0x1000, 1, expect=7),
            In(0x60, expect=1),
            Fetch(0x3000),
            Out(0xF4, ERRORS),
            Halt(),
        ]
    )
    assert str(program).splitlines() == [
        "loop 3",
        "  store8 [0x1000] = 0x7",
        "  loop for ever",
        "    add4 [0x2000] += 0x1",
        "load1 [0x1000] expect 0x7",
        "in1 0x60 expect 0x1",
        "fetch [0x3000]",
        "out1 0xf4 = errors",
        "halt",
    ]


def expanded(ops: tuple[Op, ...]) -> list[Op]:
    """Return what is executed up to and with the first halt, as a list that is multiplied out."""
    found: list[Op] = []
    for op in ops:
        found += ((expanded(op.body) or [op]) * (op.count or 1)) if isinstance(op, Loop) else [op]
    return found


@given(st.lists(FEW_TURNS, max_size=6).map(tuple))
def test_program_walk_gives_operations_as_executed_and_ends_with_a_halt(ops: tuple[Op, ...]) -> None:
    executed = expanded((*ops, Halt()))
    assert list(GuestProgram(ops).walk()) == executed[: executed.index(Halt()) + 1]


def test_program_walk_of_endless_loop_goes_on_and_of_empty_one_gives_the_loop() -> None:
    walk = GuestProgram([Loop([Store(0, 1), Loop([Loop([], count=2)])])]).walk()
    assert list(islice(walk, 5)) == [Store(0, 1), *[Loop([], count=2)] * 4]
    assert list(islice(GuestProgram([Loop([Store(0, 1)])]).walk(), 3)) == [Store(0, 1)] * 3


def test_program_walk_of_more_turns_than_a_range_can_have_starts() -> None:
    assert next(GuestProgram([Loop([Store(0, 1)], count=(1 << 64) - 1)]).walk()) == Store(0, 1)
