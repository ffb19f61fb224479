"""KvmVcpu on real KVM: every exit as an object, replies, and state that is complete when it is read."""

from __future__ import annotations

import ctypes

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel import Debug, Halt, InternalError, Interrupted, IoIn, IoOut, MmioRead, MmioWrite, OtherExit, Shutdown
from accel.errors import BackendError, StateError, UsageError
from accel_kvm import abi
from accel_kvm import vcpu as vcpu_module
from accel_kvm.ioctl import ioctl
from accel_kvm.registers import with_apic_id

pytestmark = pytest.mark.kvm

HOLE = 0x20_0000  # an address without RAM


def outcomes(guest, count: int) -> list[accel.exits.Exit]:
    return [guest.vcpu.run() for _ in range(count)]


# ports


@pytest.mark.parametrize(
    ("code", "size", "data"),
    [("e660", 1, "78"), ("66e760", 2, "7856"), ("e760", 4, "78563412")],  # out %al/%ax/%eax, $0x60
)
def test_vcpu_port_write_gives_size_and_data(boot, code, size, data) -> None:
    guest = boot("b878563412" + code + "f4")  # mov $0x12345678, %eax; out; hlt
    assert outcomes(guest, 2) == [IoOut(0x60, size, 1, bytes.fromhex(data)), Halt()]


@pytest.mark.parametrize(
    ("code", "size", "rax"),
    [("e460", 1, 0xFFFFFF78), ("66e560", 2, 0xFFFF5678), ("e560", 4, 0x12345678)],  # in $0x60, %al/%ax/%eax
)
def test_vcpu_port_read_takes_the_reply_at_the_next_run(boot, code, size, rax) -> None:
    guest = boot("b8ffffffff" + code + "f4")  # mov $-1, %eax; in; hlt
    access = guest.vcpu.run()
    assert access == IoIn(0x60, size, 1, None)
    access.reply(0x12345678)
    assert guest.vcpu.run() == Halt()
    assert guest.vcpu.read_state().rax == rax


STRING = "fc 66ba6000 b905000000 be00900000 bf00900000"  # cld; mov $0x60, %dx; mov $5, %ecx; mov $0x9000, %esi; … %edi


@pytest.mark.parametrize(("code", "size"), [("f36e", 1), ("66f36f", 2), ("f36f", 4)])  # rep outsb/outsw/outsl
def test_vcpu_string_write_gives_every_item_in_order(boot, code, size) -> None:
    guest = boot(STRING + code + "f4")
    data = bytes(range(1, 5 * size + 1))
    guest.ram.write(0x9000, data)
    seen, count = b"", 0
    while isinstance(access := guest.vcpu.run(), IoOut):
        assert (access.port, access.size, len(access.data)) == (0x60, size, size * access.count)
        seen += access.data
        count += access.count
    assert (seen, count, access) == (data, 5, Halt())


@pytest.mark.parametrize(("code", "size"), [("f36c", 1), ("66f36d", 2), ("f36d", 4)])  # rep insb/insw/insl
def test_vcpu_string_read_takes_many_items_in_one_reply(boot, code, size) -> None:
    guest = boot(STRING + code + "f4")
    data = bytes(range(1, 5 * size + 1))
    access = guest.vcpu.run()
    assert access == IoIn(0x60, size, 5, None)
    access.reply(data)
    assert guest.vcpu.run() == Halt()
    assert guest.ram.read(0x9000, len(data) + 1) == data + b"\0"


def test_vcpu_string_read_repeats_a_number_for_each_item(boot) -> None:
    guest = boot(STRING + "66f36df4")
    guest.vcpu.run().reply(0x1234)
    assert guest.vcpu.run() == Halt()
    assert guest.ram.read(0x9000, 10) == bytes.fromhex("3412") * 5


def test_vcpu_string_read_with_too_few_bytes_is_refused_and_may_be_answered_again(boot) -> None:
    guest = boot(STRING + "f36cf4")
    access = guest.vcpu.run()
    with pytest.raises(UsageError, match="4 bytes for a read of 5 from port 0x60: give 5"):
        access.reply(b"abcd")
    access.reply(b"abcde")
    assert guest.vcpu.run() == Halt()
    assert guest.ram.read(0x9000, 5) == b"abcde"


# memory


@pytest.mark.parametrize(
    ("code", "size"),
    [("8803", 1), ("668903", 2), ("8903", 4), ("488903", 8)],  # mov %al/%ax/%eax/%rax, (%rbx)
)
def test_vcpu_memory_write_without_ram_gives_address_size_and_value(boot, code, size) -> None:
    guest = boot("48b88877665544332211 bb00002000" + code + "f4", mode="long64")  # mov $…, %rax; mov $HOLE, %ebx
    value = 0x1122334455667788 & (1 << 8 * size) - 1
    assert outcomes(guest, 2) == [MmioWrite(HOLE, size, value), Halt()]


@pytest.mark.parametrize(
    ("code", "size"),
    [("8a03", 1), ("668b03", 2), ("8b03", 4), ("488b03", 8)],  # mov (%rbx), %al/%ax/%eax/%rax
)
def test_vcpu_memory_read_without_ram_takes_the_reply_at_the_next_run(boot, code, size) -> None:
    guest = boot("31c0 bb00002000" + code + "f4", mode="long64")  # xor %eax, %eax; mov $HOLE, %ebx
    access = guest.vcpu.run()
    assert access == MmioRead(HOLE, size, None)
    access.reply(0x1122334455667788)
    assert guest.vcpu.run() == Halt()
    assert guest.vcpu.read_state().rax == 0x1122334455667788 & (1 << 8 * size) - 1


# how a guest ends


def test_vcpu_triple_fault_is_a_shutdown(boot) -> None:
    guest = boot("0f0b")  # ud2, and there is no interrupt table
    shutdown = guest.vcpu.run()
    assert isinstance(shutdown, Shutdown)
    assert shutdown.detail.startswith("triple fault at RIP ")


def test_vcpu_execution_outside_of_memory_is_an_internal_error_that_says_where(boot) -> None:
    error = boot("e9fb7f1f00").vcpu.run()  # jmp HOLE
    assert isinstance(error, InternalError)
    assert "suberror 1" in error.detail
    assert f"RIP {HOLE:#x}" in error.detail


def test_vcpu_of_a_vm_that_never_had_memory_does_not_hang(open_vm) -> None:
    """By the host, KVM emulates nothing, delivers a fault into nothing, or has no page for page tables."""
    vcpu = open_vm().create_vcpu(0)
    ending = vcpu.run()
    assert isinstance(ending, InternalError | Shutdown)
    assert "RIP 0xfff0, CS base 0xffff0000" in ending.detail


def test_vcpu_of_a_vm_whose_memory_went_does_not_hang(boot) -> None:
    guest = boot("ebfe")
    guest.vm.memory.remove(guest.ram)
    assert isinstance(guest.vcpu.run(), InternalError | Shutdown)


def test_vcpu_kicked_before_run_comes_out_at_once_and_once(boot) -> None:
    guest = boot("e660f4")
    guest.vcpu.kick()
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()
    assert guest.vcpu.read_state().rip == guest.start.rip
    assert isinstance(guest.vcpu.run(), IoOut)


class GuestDebug(ctypes.Structure):
    """``struct kvm_guest_debug`` of linux/kvm.h, which the plugin does not wrap."""

    _fields_ = [("control", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("debugreg", ctypes.c_uint64 * 8)]


def test_vcpu_single_step_through_the_escape_hatch_is_a_debug_exit(boot) -> None:
    guest = boot("9090f4")
    enabled_and_single_step = GuestDebug(control=0b11)
    ioctl(guest.vcpu.backend.fd, abi._IOW(0x9B, GuestDebug), enabled_and_single_step, "KVM_SET_GUEST_DEBUG")
    for steps in (1, 2):
        assert isinstance(guest.vcpu.run(), Debug)
        assert guest.vcpu.read_state().rip == guest.start.rip + steps


class EnableCap(ctypes.Structure):
    """``struct kvm_enable_cap`` of linux/kvm.h, which the plugin does not wrap."""

    _fields_ = [
        ("cap", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("args", ctypes.c_uint64 * 4),
        ("pad", ctypes.c_uint8 * 64),
    ]


def test_vcpu_memory_read_after_an_exit_that_left_more_behind_is_no_write(boot) -> None:
    """Of the word that says what an access is, KVM writes five bytes; what it says about an error lies there too."""
    guest = boot("0f0b a100002000 f4")  # ud2; mov HOLE, %eax; hlt
    guest.vcpu.backend.record[2] = 0xABCDEF << 40
    assert isinstance(guest.vcpu.run(), Shutdown)
    guest.vcpu.write_state(attrs.evolve(guest.start, rip=guest.start.rip + 2))
    assert guest.vcpu.run() == MmioRead(HOLE, 4, None)


def test_vcpu_exit_without_an_object_of_its_own_gives_its_number(boot) -> None:
    guest = boot("b9debc0a00 0f32 f4")  # mov $0xabcde, %ecx; rdmsr, of an MSR that nobody has
    user_space_msr, unknown_msrs = 188, 1 << 1
    request = EnableCap(cap=user_space_msr, args=(unknown_msrs,))
    ioctl(guest.vm.backend._fd, abi._IOW(0xA3, EnableCap), request, "KVM_ENABLE_CAP")
    found = guest.vcpu.run()
    assert isinstance(found, OtherExit)
    assert found.reason == abi.KVM_EXIT_X86_RDMSR
    assert f"exit reason {abi.KVM_EXIT_X86_RDMSR} at RIP " in found.detail


def test_vcpu_that_lowered_its_task_priority_on_vmx_or_svm_runs_on(boot, monkeypatch) -> None:
    """There KVM leaves the guest for it, without interrupt controllers; elsewhere it has to be put in."""
    left = []

    def enter(fd: int, request: int, value: int) -> int:
        if left:
            return call(fd, request, value)
        left.append(fd)
        ctypes.c_uint32.from_buffer(guest_page, abi.KvmRun.exit_reason.offset).value = abi.KVM_EXIT_SET_TPR
        return 0

    call = vcpu_module._enter
    monkeypatch.setattr(vcpu_module, "_enter", enter)
    guest = boot("e660 f4")  # out %al, $0x60; hlt
    guest_page = guest.vcpu.backend._page
    assert guest.vcpu.run() == Interrupted()
    assert isinstance(guest.vcpu.run(), IoOut)


# state


def test_vcpu_state_read_after_an_exit_has_the_access_completed(boot) -> None:
    guest = boot("a100002000 e660 f4")  # mov HOLE, %eax; out %al, $0x60; hlt
    guest.vcpu.run().reply(0x11223344)
    state = guest.vcpu.read_state()
    assert (state.rax, state.rip) == (0x11223344, guest.start.rip + 5)
    assert guest.vcpu.read_state() == state
    assert outcomes(guest, 1) == [IoOut(0x60, 1, 1, b"\x44")]
    assert guest.vcpu.read_state().rip == guest.start.rip + 7
    assert guest.vcpu.run() == Halt()


def test_vcpu_state_in_the_middle_of_an_access_is_refused_until_the_rest_is_served(boot) -> None:
    guest = boot("a1fe0f2000 f4")  # mov HOLE + 0xffe, %eax: two bytes in each of two pages; hlt
    first = guest.vcpu.run()
    assert first == MmioRead(HOLE + 0xFFE, 2, None)
    first.reply(0x3344)
    for _ in range(2):
        with pytest.raises(StateError, match="needs one more exit"):
            guest.vcpu.read_state()
    second = guest.vcpu.run()
    assert second == MmioRead(HOLE + 0x1000, 2, None)
    second.reply(0x1122)
    assert guest.vcpu.read_state().rax == 0x11223344
    assert guest.vcpu.run() == Halt()


def test_vcpu_state_written_after_an_exit_is_not_overwritten_by_its_completion(boot) -> None:
    # mov HOLE + 0xffe, %eax; hlt; out %al, $0x60; hlt
    guest = boot("a1fe0f2000 f4 e660 f4")
    guest.vcpu.run().reply(0x55)
    elsewhere = attrs.evolve(guest.start, rip=guest.start.rip + 6, rax=0x77)
    guest.vcpu.write_state(elsewhere)
    assert guest.vcpu.read_state().rip == elsewhere.rip
    assert outcomes(guest, 2) == [IoOut(0x60, 1, 1, b"\x77"), Halt()]


def test_vcpu_state_written_while_a_part_is_held_back_drops_that_part(boot) -> None:
    guest = boot("a1fe0f2000 f4")
    guest.vcpu.run().reply(0)
    with pytest.raises(StateError):
        guest.vcpu.read_state()
    guest.restart()
    assert guest.vcpu.read_state().rip == guest.start.rip
    assert guest.vcpu.run() == MmioRead(HOLE + 0xFFE, 2, None)


@pytest.mark.parametrize("mode", ["real16", "protected32", "long64"])
def test_vcpu_state_of_each_boot_mode_reads_back_as_written(boot, mode) -> None:
    guest = boot("f4", mode=mode)
    state = guest.vcpu.read_state()
    assert attrs.evolve(state, apic_base=None) == guest.start
    guest.vcpu.write_state(state)
    assert guest.vcpu.read_state() == state
    assert guest.vcpu.run() == Halt()


@pytest.mark.parametrize("irqchip", [False, True])
def test_vcpu_task_priority_is_what_was_written_to_cr8(boot, irqchip) -> None:
    guest = boot("440f20c0 e660 f4", mode="long64", irqchip=irqchip)  # mov %cr8, %rax; out %al, $0x60; hlt
    for written in (5, 15, 0):
        guest.vcpu.write_state(attrs.evolve(guest.start, cr8=written))
        assert guest.vcpu.read_state().cr8 == written
        assert guest.vcpu.run() == IoOut(0x60, 1, 1, bytes([written]))


def test_vcpu_refuses_a_task_priority_that_there_is_not_and_runs_on(boot) -> None:
    guest = boot("f4", mode="long64")
    with pytest.raises(BackendError, match="cr8 0x10; must be 0 to 15"):
        guest.vcpu.write_state(attrs.evolve(guest.start, rip=0x9000, cr8=16))
    assert guest.vcpu.read_state().rip == guest.start.rip
    assert guest.vcpu.run() == Halt()


def activity(vcpu: accel.Vcpu) -> int:
    """Whether it runs, halts or waits: a KVM_MP_STATE_*."""
    state = abi.KvmMpState()
    ioctl(vcpu.backend.fd, abi.KVM_GET_MP_STATE, state, "KVM_GET_MP_STATE")
    return state.mp_state


def test_vcpu_halted_by_interrupt_controllers_goes_on_where_state_is_written(boot) -> None:
    guest = boot("e660 f4", irqchip=True)  # out %al, $0x60; hlt
    # What it is in after the hlt. To get there it would have to be kicked while it sleeps, not before.
    halted = abi.KvmMpState(abi.KVM_MP_STATE_HALTED)
    ioctl(guest.vcpu.backend.fd, abi.KVM_SET_MP_STATE, halted, "KVM_SET_MP_STATE")
    guest.restart()
    assert activity(guest.vcpu) == abi.KVM_MP_STATE_RUNNABLE
    assert isinstance(guest.vcpu.run(), IoOut)


def test_vcpu_that_waits_for_init_waits_on_where_state_is_written(boot) -> None:
    guest = boot("f4", irqchip=True)
    second = guest.vm.create_vcpu(1)
    second.write_state(guest.start)
    assert activity(second) == abi.KVM_MP_STATE_UNINITIALIZED
    second.kick()
    assert second.run() == Interrupted()


def test_vcpu_has_its_index_as_apic_id_whatever_host_processor_made_it(boot) -> None:
    guest = boot(
        "b801000000 0fa2 c1eb18 89d8 e760 f4"
    )  # mov $1, %eax; cpuid; shr $24, %ebx; mov %ebx, %eax; out %eax, $0x60; hlt
    vcpus = [guest.vcpu, guest.vm.create_vcpu(1), guest.vm.create_vcpu(6)]
    for vcpu in vcpus:
        vcpu.write_state(guest.start)
    found = [int.from_bytes(vcpu.run().data, "little") for vcpu in vcpus]
    assert found == [0, 1, 6]


def test_vcpu_apic_id_is_in_each_leaf_that_tells_it() -> None:
    cpuid = abi.cpuid2(5)
    for entry, leaf in zip(cpuid.entries, (0x0, 0x1, 0xB, 0x1F, 0x8000_001E), strict=True):
        entry.function = leaf
        entry.eax = entry.ebx = entry.edx = 0xFFFF_FFFF
    own = with_apic_id(cpuid, 0x123)
    assert [(one.eax, one.ebx, one.edx) for one in own.entries] == [
        (0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF),
        (0xFFFF_FFFF, 0x23FF_FFFF, 0xFFFF_FFFF),
        (0xFFFF_FFFF, 0xFFFF_FFFF, 0x123),
        (0xFFFF_FFFF, 0xFFFF_FFFF, 0x123),
        (0x123, 0xFFFF_FFFF, 0xFFFF_FFFF),
    ]
    assert cpuid.entries[1].ebx == 0xFFFF_FFFF


GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "cr2")
CARRY_ZERO_SIGN_DIRECTION_OVERFLOW = (0x001, 0x040, 0x080, 0x400, 0x800)


def test_vcpu_general_registers_read_back_whatever_was_written(boot) -> None:
    guest = boot("f4", mode="long64")

    @settings(max_examples=200, deadline=None)
    @given(
        st.fixed_dictionaries({name: st.integers(0, (1 << 64) - 1) for name in GENERAL}),
        st.sets(st.sampled_from(CARRY_ZERO_SIGN_DIRECTION_OVERFLOW)),
    )
    def round_trip(values: dict[str, int], flags: set[int]) -> None:
        written = attrs.evolve(guest.start, **values, rflags=2 | sum(flags))
        guest.vcpu.write_state(written)
        assert attrs.evolve(guest.vcpu.read_state(), apic_base=None) == written

    round_trip()
