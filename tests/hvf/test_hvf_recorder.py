"""The recorder knows the rules of Hypervisor.framework: each one broken, and the code that it gives."""

from __future__ import annotations

import mmap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_hvf_stub.api import HvfApi, HvMemory, HvReturn
from accel_hvf_stub.guest_map import GuestMap
from accel_hvf_stub.recorder import MAX_VCPUS, HvfRecorder

PAGE = 16 << 10
HOST = 1 << 40
RW = int(HvMemory.READ | HvMemory.WRITE)
R = int(HvMemory.READ)
BAD = HvReturn.HV_BAD_ARGUMENT


@pytest.fixture
def recorder() -> HvfRecorder:
    """One with a VM, and four pages mapped from page 4 on."""
    made = HvfRecorder()
    assert made.hv_vm_create(0) == 0
    assert made.hv_vm_map(HOST, 4 * PAGE, 4 * PAGE, RW) == 0
    return made


def flags_of(recorder: HvfRecorder) -> list[tuple[int, int, int]]:
    return [(one.ipa // PAGE, one.size // PAGE, int(one.flags)) for one in recorder.mappings]


def test_recorder_is_an_api() -> None:
    api: HvfApi = HvfRecorder()
    assert api.hv_vm_get_max_vcpu_count() == (0, MAX_VCPUS)


@pytest.mark.parametrize(
    ("addr", "ipa", "size", "flags", "code"),
    [
        (HOST + 1, 0, PAGE, RW, BAD),
        (HOST + mmap.PAGESIZE // 2, 0, PAGE, RW, BAD),
        (0, 0, PAGE, RW, BAD),
        ((1 << 64) - PAGE, 0, 2 * PAGE, RW, BAD),
        (HOST, PAGE // 2, PAGE, RW, BAD),
        (HOST, 4096, PAGE, RW, BAD),
        (HOST, -PAGE, PAGE, RW, BAD),
        (HOST, 0, PAGE + 4096, RW, BAD),
        (HOST, 0, 0, RW, BAD),
        (HOST, 0, -PAGE, RW, BAD),
        (HOST, 0, PAGE, 8, BAD),
        (HOST, 0, PAGE, -1, BAD),
        (HOST, (1 << 36) - PAGE, 2 * PAGE, RW, BAD),
        (HOST, 1 << 36, PAGE, RW, BAD),
        (HOST, 4 * PAGE, 4 * PAGE, RW, HvReturn.HV_ERROR),
        (HOST, 3 * PAGE, 2 * PAGE, RW, HvReturn.HV_ERROR),
        (HOST, 7 * PAGE, PAGE, RW, HvReturn.HV_ERROR),
        (HOST, 0, 20 * PAGE, RW, HvReturn.HV_ERROR),
        (HOST, 5 * PAGE, PAGE, R, HvReturn.HV_ERROR),
        (HOST, 3 * PAGE, PAGE, RW, 0),
        (HOST, 8 * PAGE, PAGE, 0, 0),
        (HOST, (1 << 36) - PAGE, PAGE, RW, 0),
    ],
)
def test_recorder_map_is_legal_for_free_aligned_pages_only(
    recorder: HvfRecorder, addr: int, ipa: int, size: int, flags: int, code: int
) -> None:
    before = flags_of(recorder)
    assert recorder.hv_vm_map(addr, ipa, size, flags) == code
    assert (flags_of(recorder) == before) == (code != 0)
    assert recorder.illegal == [call for call in recorder.calls[-1:] if code]


@pytest.mark.parametrize(
    ("ipa", "size", "left"),
    [
        (4 * PAGE, 4 * PAGE, []),
        (4 * PAGE, PAGE, [(5, 3, RW)]),
        (7 * PAGE, PAGE, [(4, 3, RW)]),
        (5 * PAGE, 2 * PAGE, [(4, 1, RW), (7, 1, RW)]),
    ],
)
def test_recorder_unmap_of_a_part_leaves_the_rest(recorder: HvfRecorder, ipa: int, size: int, left: object) -> None:
    assert recorder.hv_vm_unmap(ipa, size) == 0
    assert flags_of(recorder) == left
    assert [one.addr - HOST for one in recorder.mappings] == [one.ipa - 4 * PAGE for one in recorder.mappings]


@pytest.mark.parametrize(
    ("ipa", "size"),
    [
        (3 * PAGE, PAGE),
        (3 * PAGE, 2 * PAGE),
        (7 * PAGE, 2 * PAGE),
        (8 * PAGE, PAGE),
        (0, 12 * PAGE),
        (4 * PAGE + 4096, PAGE),
        (4 * PAGE, 4096),
        (4 * PAGE, 0),
    ],
)
def test_recorder_unmap_and_protect_of_what_is_not_mapped_are_illegal(
    recorder: HvfRecorder, ipa: int, size: int
) -> None:
    before = flags_of(recorder)
    assert recorder.hv_vm_unmap(ipa, size) == BAD
    assert recorder.hv_vm_protect(ipa, size, R) == BAD
    assert flags_of(recorder) == before


def test_recorder_unmap_across_neighbours_is_legal_and_across_a_hole_is_not(recorder: HvfRecorder) -> None:
    assert recorder.hv_vm_map(HOST + (1 << 30), 8 * PAGE, PAGE, R) == 0
    assert recorder.hv_vm_map(HOST + (1 << 30), 10 * PAGE, PAGE, R) == 0
    assert recorder.hv_vm_unmap(7 * PAGE, 4 * PAGE) == BAD
    assert recorder.hv_vm_unmap(7 * PAGE, 2 * PAGE) == 0
    assert flags_of(recorder) == [(4, 3, RW), (10, 1, R)]


def test_recorder_protect_changes_the_flags_of_a_part_alone(recorder: HvfRecorder) -> None:
    assert recorder.hv_vm_protect(5 * PAGE, 2 * PAGE, R) == 0
    assert flags_of(recorder) == [(4, 1, RW), (5, 2, R), (7, 1, RW)]
    assert recorder.hv_vm_protect(5 * PAGE, PAGE, 9) == BAD


def test_recorder_without_a_vm_has_no_device() -> None:
    none = HvReturn.HV_NO_DEVICE
    recorder = HvfRecorder()
    assert recorder.hv_vm_destroy() == none
    assert recorder.hv_vm_map(HOST, 0, PAGE, RW) == none
    assert recorder.hv_vm_unmap(0, PAGE) == none
    assert recorder.hv_vm_protect(0, PAGE, R) == none
    assert recorder.hv_vcpu_create(0)[0] == none
    assert recorder.hv_vcpu_run(0) == none
    assert recorder.hv_vcpu_destroy(0) == none
    assert recorder.hv_vcpus_exit([]) == none
    assert len(recorder.illegal) == 8
    assert recorder.mappings == ()


def test_recorder_second_vm_of_a_process_is_busy_until_the_first_is_gone(recorder: HvfRecorder) -> None:
    assert recorder.hv_vm_create(0) == HvReturn.HV_BUSY
    assert recorder.hv_vm_destroy() == 0
    assert recorder.hv_vm_create(0) == 0
    assert recorder.mappings == ()
    assert HvfRecorder().hv_vm_create(0) == 0


def test_recorder_vm_with_vcpus_is_busy(recorder: HvfRecorder) -> None:
    code, vcpu, _ = recorder.hv_vcpu_create(0)
    assert code == 0
    assert recorder.hv_vm_destroy() == HvReturn.HV_BUSY
    assert recorder.hv_vcpu_destroy(vcpu) == 0
    assert recorder.hv_vm_destroy() == 0


def test_recorder_thread_has_one_vcpu_and_others_cannot_run_or_destroy_it(recorder: HvfRecorder) -> None:
    _, vcpu, _ = recorder.hv_vcpu_create(0)
    assert recorder.hv_vcpu_create(0)[0] == HvReturn.HV_BUSY
    with ThreadPoolExecutor(1) as other:
        assert other.submit(recorder.hv_vcpu_run, vcpu).result() == BAD
        assert other.submit(recorder.hv_vcpu_destroy, vcpu).result() == BAD
        code, second, _ = other.submit(recorder.hv_vcpu_create, 0).result()
        assert (code, second) == (0, vcpu + 1)
    assert recorder.hv_vcpu_destroy(vcpu) == 0
    assert recorder.hv_vcpu_destroy(vcpu) == BAD
    assert recorder.hv_vcpu_run(vcpu) == BAD


def test_recorder_exit_is_for_any_thread_and_sticks_for_one_run(recorder: HvfRecorder) -> None:
    _, vcpu, _ = recorder.hv_vcpu_create(0)
    assert recorder.hv_vcpu_run(vcpu) == HvReturn.HV_UNSUPPORTED
    with ThreadPoolExecutor(1) as other:
        assert other.submit(recorder.hv_vcpus_exit, [vcpu]).result() == 0
        assert other.submit(recorder.hv_vcpus_exit, [vcpu]).result() == 0
    assert recorder.hv_vcpu_run(vcpu) == 0
    assert recorder.hv_vcpu_run(vcpu) == HvReturn.HV_UNSUPPORTED


def test_recorder_exit_of_unknown_vcpus_is_illegal_and_asks_nobody(recorder: HvfRecorder) -> None:
    _, vcpu, _ = recorder.hv_vcpu_create(0)
    assert recorder.hv_vcpus_exit([vcpu, vcpu + 1]) == BAD
    assert recorder.hv_vcpu_run(vcpu) == HvReturn.HV_UNSUPPORTED
    assert recorder.hv_vcpus_exit([]) == 0


def test_recorder_exit_is_forgotten_with_the_vcpu(recorder: HvfRecorder) -> None:
    _, vcpu, _ = recorder.hv_vcpu_create(0)
    assert recorder.hv_vcpus_exit([vcpu]) == 0
    assert recorder.hv_vcpu_destroy(vcpu) == 0
    assert recorder.hv_vcpu_create(0) == (0, vcpu, 0)
    assert recorder.hv_vcpu_run(vcpu) == HvReturn.HV_UNSUPPORTED


def test_recorder_has_so_many_vcpus_and_no_more(recorder: HvfRecorder) -> None:
    all_made, codes = threading.Barrier(MAX_VCPUS + 1), []

    def create() -> None:
        codes.append(recorder.hv_vcpu_create(0)[0])
        all_made.wait()

    threads = [threading.Thread(target=create) for _ in range(MAX_VCPUS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0] * MAX_VCPUS + [HvReturn.HV_NO_RESOURCES]


def test_recorder_take_forgets_what_it_returns(recorder: HvfRecorder) -> None:
    assert [call.function for call in recorder.take()] == ["hv_vm_create", "hv_vm_map"]
    assert recorder.take() == []
    assert recorder.hv_vm_unmap(4 * PAGE, PAGE) == 0
    assert [(call.function, dict(call.arguments)) for call in recorder.take()] == [
        ("hv_vm_unmap", {"ipa": 4 * PAGE, "size": PAGE})
    ]


SPAN = 12
pages = st.integers(0, SPAN - 1)
steps = st.lists(
    st.tuples(st.sampled_from(["map", "unmap", "protect"]), pages, st.integers(1, 5), st.sampled_from([R, RW, 7, 0])),
    max_size=14,
)


@settings(deadline=None)
@given(steps)
def test_guest_map_agrees_with_a_dict_of_pages(script: list[tuple[str, int, int, int]]) -> None:
    """The oracle has no ranges: for each page the host page and the flags, or nothing."""
    guest, oracle = GuestMap(), {}
    for number, (what, first, count, flags) in enumerate(script):
        window = range(first, first + count)
        host = HOST + (number << 30)
        if what == "map":
            legal = not any(page in oracle for page in window)
            code = guest.map(host, first * PAGE, count * PAGE, flags)
            changed = {page: (host + (page - first) * PAGE, flags) for page in window}
        elif what == "unmap":
            legal = all(page in oracle for page in window)
            code = guest.unmap(first * PAGE, count * PAGE)
            changed = dict.fromkeys(window)
        else:
            legal = all(page in oracle for page in window)
            code = guest.protect(first * PAGE, count * PAGE, flags)
            changed = {page: (oracle[page][0], flags) for page in window if page in oracle}
        assert (code == 0) == legal
        if legal:
            oracle = {page: now for page, now in {**oracle, **changed}.items() if now is not None}
        found = {
            (one.ipa + at) // PAGE: (one.addr + at, int(one.flags)) for one in guest for at in range(0, one.size, PAGE)
        }
        assert found == oracle
        assert [one.ipa for one in guest] == sorted(one.ipa for one in guest)
