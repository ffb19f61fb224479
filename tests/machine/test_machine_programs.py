"""One guest program, every accelerator here: the mock interprets it, KVM executes its machine code."""

from __future__ import annotations

import threading

import pytest

import accel
from accel.address import AddressRange
from accel.memory.listener import MemoryListener
from accel.plugins import plugin_manager
from accel.program import ERRORS, Add, Fetch, GuestProgram, In, Load, Loop, Out, Store
from accel.result import Outcome
from accel.testing.programs import call, hello, poll, smp_count, touch

REGION = 0x1000_0000
EVERY = [pytest.param("kvm", marks=pytest.mark.kvm), "mock"]

pytestmark = pytest.mark.parametrize("accelerator", EVERY)


def test_hello_program_prints_and_exits(bench, accelerator):
    one = bench(hello(), accelerators=accelerator)
    result = one.machine.run(timeout=60)
    assert (result.accelerator, result.outcome, result.exit_status) == (accelerator, Outcome.EXITED, 1)
    assert one.printed == "hello from the guest\n"


@pytest.mark.parametrize("end", ["halt", "spin"])
def test_hello_program_shows_its_text_while_it_halts_or_spins(bench, accelerator, end):
    shown = threading.Event()

    class Sink:
        def write(self, data):
            shown.set()
            return len(data)

        def flush(self):
            """Nothing is buffered."""

    run = bench(hello(end=end), accelerators=accelerator, sink=Sink()).machine.start()
    assert shown.wait(60)
    run.stop()


def test_touch_program_finds_what_it_stored(bench, accelerator):
    one = bench(touch(AddressRange(0x20_0000, 0x24_0000), 3), accelerators=accelerator)
    assert one.machine.run(timeout=60).exit_status == 1


def test_touch_program_without_ram_counts_every_load(bench, accelerator):
    one = bench(touch(AddressRange(REGION, REGION + 0x8000), 2), accelerators=accelerator)
    result = one.machine.run(timeout=60)
    assert result.exit_status == 2 * (8 * 2) + 1
    assert result.exits["mmio"] == 2 * 8 * 2
    assert result.spurious_faults == 0


@pytest.mark.parametrize("cpus", [1, 4])
def test_smp_program_counts_atomically(bench, accelerator, cpus):
    one = bench(smp_count(0x30_0000, 500), accelerators=accelerator, cpus=cpus)
    assert one.machine.run(timeout=60).outcome is Outcome.HALTED
    assert int.from_bytes(one.machine.memory.read(0x30_0000, 8), "little") == 500 * cpus


def test_program_reads_and_writes_every_size(bench, accelerator):
    program = GuestProgram(
        (
            *(Store(0x20_0000 + 16 * size, (1 << 8 * size) - 2, size) for size in (1, 2, 4, 8)),
            *(Load(0x20_0000 + 16 * size, size, (1 << 8 * size) - 2) for size in (1, 2, 4, 8)),
            *(In(0x60 + size, size, expect=0x11 * size) for size in (1, 2, 4)),
            *(Out(0x70 + size, 0x22 * size, size) for size in (1, 2, 4)),
            Add(0x20_0100, 5, 4),
            Add(0x20_0100, 6, 4),
            Load(0x20_0100, 4, 11),
            Out(0x7F, ERRORS),
        )
    )
    one = bench(program, accelerators=accelerator)
    seen = []

    @one.machine.port(0x60, 8)
    def answer(access):
        access.reply(0x11 * access.size)

    @one.machine.port(0x70, 16)
    def note(access):
        seen.append((access.port, access.size, access.value))

    assert one.machine.run(timeout=60).outcome is Outcome.HALTED
    assert seen == [(0x71, 1, 0x22), (0x72, 2, 0x44), (0x74, 4, 0x88), (0x7F, 1, 0)]


def test_mmio_region_serves_loads_and_takes_stores(bench, accelerator):
    program = GuestProgram((Store(REGION + 8, 0xABCD, 2), Load(REGION + 4, 4, expect=0x1234), Out(0xF4, ERRORS)))
    one = bench(program, accelerators=accelerator)
    taken = []
    region = accel.MemoryRegion.mmio(
        "device", 0x1000, read=lambda offset, size: 0x1230 + offset, write=lambda *access: taken.append(access)
    )
    one.machine.memory.add(region, at=REGION)
    result = one.machine.run(timeout=60)
    assert (result.exit_status, result.exits["mmio"], taken) == (1, 2, [(8, 0xABCD, 2)])


def test_rom_keeps_its_contents_and_lets_reads_through_without_exits(bench, accelerator):
    program = GuestProgram((Loop((Load(REGION, 4, 0x6D6F72),), 50), Store(REGION, 1, 4), Load(REGION, 4, 0x6D6F72)))
    one = bench(GuestProgram((*program.ops, Out(0xF4, ERRORS))), accelerators=accelerator)
    one.machine.memory.add(accel.MemoryRegion.rom("rom", b"rom", "4K"), at=REGION)
    result = one.machine.run(timeout=60)
    assert (result.exit_status, result.exits["mmio"]) == (1, 1)
    assert one.machine.memory.read(REGION, 4) == b"rom\0"
    assert result.spurious_faults == 0


def test_fetch_where_nothing_is_crashes_as_an_internal_error(bench, accelerator):
    one = bench(GuestProgram((Fetch(REGION),)), accelerators=accelerator)
    result = one.machine.run(timeout=60)
    assert (result.outcome, result.crash.reason) == (Outcome.CRASHED, "internal-error")
    assert result.spurious_faults == 0


def race(
    bench, accelerator: str, program: GuestProgram, hold: str, updates: int, *, ends: bool = False
) -> accel.RunResult:
    """Replace the RAM that the guest uses until enough was changed, or (unheld) until it shows, or `ends` the guest."""
    one = bench(program, accelerators=accelerator, options={accelerator: {"plan": "replace", "hold": hold}})
    extra = accel.MemoryRegion.ram("extra", "64K", max_size="128K")
    one.machine.memory.add(extra, at=REGION)
    run = one.machine.start()
    most = updates if hold == "inhibit" else 100_000
    for made in range(most):
        shows = hold == "unsafe" and not ends and made >= updates and sum(run.spurious_faults_so_far()) > 0
        if run.done or shows:
            break
        extra.resize("128K" if made % 2 == 0 else "64K")
    if not run.done:
        run.stop()
    return run.wait(timeout=60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_load_race_faults_only_where_nobody_is_held(bench, accelerator, hold):
    result = race(bench, accelerator, poll(REGION, 0), hold, 300)
    assert (result.spurious_faults > 0) == (hold == "unsafe")
    assert result.outcome is Outcome.STOPPED


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_fetch_race_crashes_only_where_nobody_is_held(bench, accelerator, hold):
    result = race(bench, accelerator, call(REGION), hold, 300, ends=True)
    assert (result.unserved_faults > 0) == (hold == "unsafe")
    assert result.outcome is (Outcome.CRASHED if hold == "unsafe" else Outcome.STOPPED)


def test_plugin_hooks_attach_listeners_and_tell_a_machines_life(bench, accelerator):
    told: list[object] = []

    class Listener(MemoryListener):
        name = "hooked"

        def region_add(self, section):
            told.append(section.region.name)

    class Plugin:
        @accel.hookimpl
        def accel_memory_listeners(self, machine):
            return [Listener()]

        @accel.hookimpl
        def accel_machine_created(self, machine):
            told.append("created")

        @accel.hookimpl
        def accel_machine_closed(self, machine):
            told.append("closed")

    plugin = Plugin()
    plugin_manager().register(plugin, "hooked")
    try:
        machine = bench(accelerators=accelerator).machine
        assert told == ["ram", "created"]
        machine.close()
        assert told == ["ram", "created", "closed"]
    finally:
        plugin_manager().unregister(plugin)
