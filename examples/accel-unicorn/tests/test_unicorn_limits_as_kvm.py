"""What random sequences cannot show: limits of Unicorn that its page names, beside what KVM does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from accel_unicorn import forget_code

import accel

pytestmark = pytest.mark.kvm


class _ByHand:
    """One vCPU or two of a guest in long mode, run by hand; code at 1 MiB, nothing at 0xe000_0000."""

    CODE, HOLE = 0x10_0000, 0xE000_0000

    def __init__(self, accelerator: str, code: bytes, cpus: int = 1) -> None:
        self.machine = accel.Machine.create(accelerator, memory="16M", cpus=cpus)
        self.machine.load(code, mode="long64")

    def exits(self, count: int, vcpu: int = 0) -> list[tuple[object, ...]]:
        """Run until there were so many exits, or it halts; reads are answered with their number."""
        found: list[tuple[object, ...]] = []
        while len(found) < count:
            match self.machine.vm.vcpus[vcpu].run():
                case accel.MmioRead(address, size) as read:
                    read.reply(len(found))
                    found.append(("read", address - self.HOLE, size))
                case accel.MmioWrite(address, size, value):
                    found.append(("write", address - self.HOLE, size, value))
                case accel.IoOut(port, _, _, data):
                    found.append(("out", port, data[0]))
                case accel.Halt():
                    found.append(("halt",))
                    break
        return found


@pytest.fixture
def by_hand(request: pytest.FixtureRequest) -> Callable[..., _ByHand]:
    def make(*args: object) -> _ByHand:
        one = _ByHand(*args)  # type: ignore[arg-type]
        request.addfinalizer(one.machine.close)
        return one

    return make


def test_write_that_leaves_memory_comes_out_of_unicorn_byte_by_byte(by_hand):
    end = 16 << 20
    code = (
        b"\x48\xbb" + (end - 2).to_bytes(8, "little") + b"\x48\xb8\1\2\3\4\5\6\7\x08\x48\x89\x03\xf4"
    )  # mov [rbx], rax
    kvm, unicorn = (by_hand(name, code).exits(9) for name in ("kvm", "unicorn"))
    at = end - _ByHand.HOLE
    assert kvm == [("write", at, 6, 0x0807_0605_0403), ("halt",)]
    assert unicorn == [*(("write", at + n, 1, 3 + n) for n in range(6)), ("halt",)]


def test_lock_neg_of_a_device_that_counts_does_not_end_on_unicorn(by_hand):
    code = b"\x48\xbb" + _ByHand.HOLE.to_bytes(8, "little") + b"\xf0\xf7\x1b\xf4"  # lock neg dword [rbx]
    kvm, unicorn = (by_hand(name, code) for name in ("kvm", "unicorn"))
    assert kvm.exits(9) == [("read", 0, 4), ("write", 0, 4, 0), ("halt",)]
    assert unicorn.exits(50)[0] == ("read", 0, 4)
    assert ("halt",) not in unicorn.exits(50)
    unicorn.machine.vm.vcpus[0].kick()
    assert isinstance(unicorn.machine.vm.vcpus[0].run(), accel.MmioRead | accel.MmioWrite | accel.Interrupted)


#: again: mov al, 1; out 0x42, al; jmp again
_SAYS_ONE = b"\xb0\x01\xe6\x42\xeb\xfa"


def test_code_that_the_host_changes_is_seen_by_unicorn_once_it_is_told(by_hand):
    kvm, unicorn = (by_hand(name, _SAYS_ONE) for name in ("kvm", "unicorn"))
    for one in (kvm, unicorn):
        assert one.exits(2) == [("out", 0x42, 1)] * 2
        one.machine.memory.write(_ByHand.CODE + 1, b"\x02")
    assert kvm.exits(2) == [("out", 0x42, 2)] * 2
    assert unicorn.exits(2) == [("out", 0x42, 1)] * 2
    forget_code(unicorn.machine)
    assert unicorn.exits(2) == [("out", 0x42, 2)] * 2


def test_code_that_another_vcpu_changes_is_seen_by_unicorn_once_it_is_told(by_hand):
    # test edi, edi, which is the vCPU's number; jnz writer; then as above. writer: mov byte [0x100005], 2; hlt
    code = b"\x85\xff\x75\x06" + _SAYS_ONE + b"\xc6\x04\x25\x05\x00\x10\x00\x02\xf4"
    kvm, unicorn = (by_hand(name, code, 2) for name in ("kvm", "unicorn"))
    for one in (kvm, unicorn):
        assert one.exits(2) == [("out", 0x42, 1)] * 2
        assert one.exits(1, vcpu=1) == [("halt",)]
    assert kvm.exits(2) == [("out", 0x42, 2)] * 2
    assert unicorn.exits(2) == [("out", 0x42, 1)] * 2
    forget_code(unicorn.machine)
    assert unicorn.exits(2) == [("out", 0x42, 2)] * 2
