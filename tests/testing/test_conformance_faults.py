"""Each planted mistake is found by a test of the suite whose name says the area; without one, nothing is found."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

#: For each mistake the tests of which one has to find it, as for ``-k``, and words of what that says.
CAUGHT = {
    "readonlyignored": ("readonly_memory_lets_writes_out", "due was MmioWrite"),
    "unmapforgotten": ("memory_comes_and_goes", "finds memory at 0x10000000, where nothing is"),
    "offsetignored": ("memory_shows_twice_through_aliases", "does not read 0x81 at 0xd0000000"),
    "logpagelost": ("dirty_log_has_exactly_the_pages", "the log has pages [0, 1, 63, 64]"),
    "loglostwithslot": (
        "dirty_log_survives_a_change and remove",
        "after the change (remove) the log does not have them",
    ),
    "undodoesnothing": ("slots_are_as_before_after_a_change_that_fails and grow", "that failed in apply after it"),
    "holdunasked": ("atomic_changes_are_not_seen_by_guests and cut_and_close_holes", "came out"),
    "goneinside": ("memory_that_goes_is_gone", "vCPU 0 did not come out within 5 s"),
    "piecewritable": (
        "readonly_memory_stays_so_in_pieces and default",
        "after a device cut it in two a store to ROM at 0x10002008 did not come out",
    ),
    "movedpart": ("memory_shows_twice_through_aliases", "after an alias moved the guest does not read 0x82"),
    "logleaks": ("leaks_of_changing_memory", "left 48 descriptors behind"),
    "kicklostsometimes": ("kicks_of_hundreds_are_all_heard", "after kick 100 of 300: vCPU 0 did not come out"),
    "addresscut": ("memory_above_4g", "came out with MmioRead(address=0x10001000"),
    "portdatashared": ("threads_get_the_replies and port", "vCPU 0 did not get its reply"),
    "recordshared": ("threads_get_the_replies and memory", "vCPU 0 did not get its reply"),
    "codekept": ("exits_fetch_finds_the_code", "returned from code that was there before"),
    "kicklostoutside": ("kicks_outside_are_for_the_next_run", "due was Interrupted"),
    "kickkept": ("kicks_are_taken_back", "came out with Interrupted; due was IoOut"),
    "kickallatonce": ("kicks_of_all_keep_the_guests_out", "between `kick_all` and `resume_all`"),
    "valuecut": ("exits_store_to_a_hole", "value=0xcbdae9f8); due was"),
    "sizewrong": ("exits_load_from_a_hole", "size=0x4); due was MmioRead(address=0x10000088, size=0x8)"),
    "countmissing": ("exits_out_gives_port_size_and_data and 128", "count=0x0"),
    "haltasshutdown": ("exits_end_of_a_program_is_halt", "came out with Shutdown"),
    "replyignored": ("exits_in_gives_port_and_size", "read something else"),
    "recordnarrow": ("exits_record_stays_where_it_is", "VcpuBackend.record is a memoryview of 16 bytes in format 'I'"),
    "descriptorleaked": ("leaks_of_a_machine_that_ran", "left 12 descriptors behind"),
    "threadleaked": ("leaks_of_a_vm_that_never_ran", "left 12 threads behind"),
    "vmkept": ("leaks_no_vm_is_kept", "these objects are kept: MockVm"),
    "claimstoomuch": ("lifecycle_vm_offers_what_the_probe_claims", "claims irqchip that the VM does not offer"),
    "fewvcpus": ("lifecycle_vcpus_can_be_created", "vCPU creation failed: ENOSPC"),
    "interruptlineraises": ("errors_interrupt_line", "raised KeyError: 4 (in set_irq, planted_faults.py"),
    "oneatatime": ("threads_run_vcpus_at_once", "vCPU 1 did not come out within 5 s; its thread stands in serial"),
    "queuereversed": ("extras_queued_writes_arrive_in_order", "number 0 arrived as"),
    "doorbellforall": ("extras_doorbells_ring_without_an_exit", "rang 1 times, with 0 exits"),
}

#: Those with which a test waits in vain: for a guest that stays inside, or threads that do not end. Where one stays
#: behind in the accelerator comes last, since the others would go on beside it.
STUCK = ("goneinside", "kicklostsometimes", "threadleaked", "oneatatime")
#: Longest waits in seconds: for what comes in the end, on a host that is as busy as may be; and for what never comes.
PATIENCE, IN_VAIN = 60, 5

Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def found(python: Process, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the suite finds: for each accelerator what the chosen tests say, or an empty text; all in two processes."""
    folder = tmp_path_factory.mktemp("junit")
    tests = {name: test for name, (test, _) in CAUGHT.items()}
    # The sound ones are asked to do what any of the others is; and one what only holds can make a mistake of.
    tests["soundmock"] = " or ".join(f"({test})" for test in sorted(set(tests.values())))
    tests["heldmock"] = "threads_create_a_vcpu or kicks_of_all"

    def judge(names: Iterable[str], patience: int) -> dict[str, list[str]]:
        order, junit = list(names), folder / f"{patience}.xml"
        chosen = " or ".join(f"({name} and ({tests[name]}))" for name in order)
        done = python(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "accel_pytest", "--tb=line"),
            *("--pyargs", "accel.testing.conformance", "--accel", ",".join(order), "--accel-timeout", str(patience)),
            *("--junitxml", junit, "-k", chosen),
        )
        assert done.returncode == 1, done.stdout + done.stderr
        said: dict[str, list[str]] = {}
        for case in ElementTree.parse(junit).iter("testcase"):
            accelerator = next(one for one in order if one in str(case.get("name")))
            assert case.find("skipped") is None, f"{case.get('name')} is skipped"
            failure = case.find("failure")
            said.setdefault(accelerator, []).append("" if failure is None else str(failure.get("message")))
        return said

    with ThreadPoolExecutor(1) as beside:
        stuck = beside.submit(judge, STUCK, IN_VAIN)
        return judge([name for name in tests if name not in STUCK], PATIENCE) | stuck.result()


@pytest.mark.parametrize("fault", CAUGHT)
def test_planted_fault_is_caught_by_a_test_of_its_area(found: dict[str, list[str]], fault: str) -> None:
    _, words = CAUGHT[fault]
    failed = [" ".join(text.split()) for text in found[fault] if text]
    assert any(words in text for text in failed), failed or f"none of {len(found[fault])} tests found it"


def test_accelerator_without_a_fault_passes_all_of_these(found: dict[str, list[str]]) -> None:
    assert len(found["soundmock"]) >= len(CAUGHT)
    assert set(found["soundmock"]) == {""}
    assert found["heldmock"] == ["", ""]


def test_planted_faults_are_all_looked_for() -> None:
    source = Path(__file__).with_name("broken_accelerators.py").read_text()
    planted = set(source.partition("\nFAULTS = {")[2].partition("\n}\n")[0].replace('"', "").split())
    names = {word.removesuffix(":") for word in planted if word.endswith(":")}
    # Those that end or stop the process have tests of their own.
    assert names == {
        *CAUGHT,
        "soundmock",
        "heldmock",
        "elsewhere",
        "kickignored",
        "crashes",
        "vmcrashes",
        "keepsinterpreter",
    }
