"""What an exit costs, beside a plain Unicorn hook that does the same work in Python, in one run.

    python benchmarks/exit_cost.py [ROUNDS]

Each figure is the best of some rounds: the host does other things too. "run" is `VcpuBackend.run` in a loop, which
is what the accelerator costs; "machine" is a whole `Machine` with its gate, counters and a port handler.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import unicorn
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86

import accel
from accel.arch.x86 import X86Segment, X86State

COUNT = 50_000
CODE, HOLE = 0x1000, 0xE000_0000
# mov ecx, COUNT; mov ebx, HOLE; again: the access; dec ecx; jnz again; hlt
ACCESSES = {"port write": b"\xe6\x42", "device read": b"\x8a\x03", "device write": b"\x88\x03"}


def code(access: bytes) -> bytes:
    head = b"\xb9" + COUNT.to_bytes(4, "little") + b"\xbb" + HOLE.to_bytes(4, "little")
    return head + access + b"\xff\xc9\x75\xfa\xf4"


def hook(access: str) -> float:
    """Return seconds for each call of a plain hook."""
    engine = unicorn.Uc(uc.UC_ARCH_X86, uc.UC_MODE_32)
    engine.mem_map(CODE, 0x1000)
    engine.mem_write(CODE, code(ACCESSES[access]))
    seen = [0]

    def out(_engine: object, _port: int, _size: int, _value: int, _data: object) -> None:
        seen[0] += 1

    def read(_engine: object, _offset: int, _size: int, _data: object) -> int:
        seen[0] += 1
        return 0

    def write(_engine: object, _offset: int, _size: int, _value: int, _data: object) -> None:
        seen[0] += 1

    engine.hook_add(uc.UC_HOOK_INSN, out, None, 1, 0, x86.UC_X86_INS_OUT)
    engine.mmio_map(HOLE, 0x1000, read, None, write, None)
    began = time.perf_counter()
    engine.emu_start(CODE, 1 << 40)
    took = time.perf_counter() - began
    assert seen[0] == COUNT
    return took / COUNT


def run(access: str) -> float:
    """Return seconds for each exit of `VcpuBackend.run`."""
    with accel.open_accelerator("unicorn") as opened, opened.create_vm() as vm:
        vm.memory.add(accel.MemoryRegion.ram("ram", "64K"), at=0)
        vm.memory.write(CODE, code(ACCESSES[access]))
        vcpu = vm.create_vcpu(0)
        data = X86Segment(limit=0xFFFF_FFFF, selector=0x10, type=3, db=True, granularity=True)
        text = X86Segment(limit=0xFFFF_FFFF, selector=8, type=0xB, db=True, granularity=True)
        vcpu.write_state(X86State(rip=CODE, cs=text, ds=data, es=data, ss=data, cr0=0x11))
        enter, seen, halt = vcpu.backend.run, 0, accel.ExitKind.HALT
        began = time.perf_counter()
        while enter() != halt:
            seen += 1
        took = time.perf_counter() - began
        assert seen == COUNT
        return took / COUNT


def machine(access: str) -> float:
    """Return seconds for each exit of a machine whose device does next to nothing."""
    with accel.Machine.create("unicorn", memory="16M") as one:
        seen = [0]

        def count(*_access: int) -> int:
            seen[0] += 1
            return 0

        one.port(0x42)(count)
        one.memory.add(accel.MemoryRegion.mmio("device", 0x1000, read=count, write=count), at=HOLE)
        one.load(code(ACCESSES[access]), mode="protected32")
        began = time.perf_counter()
        one.run()
        took = time.perf_counter() - began
        assert seen[0] == COUNT
        return took / COUNT


def best(measure: Callable[[str], float], access: str, rounds: int) -> float:
    return min(measure(access) for _ in range(rounds)) * 1e6


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{'':14}{'hook':>9}{'run':>9}{'ratio':>7}{'machine':>9}{'ratio':>7}   (microseconds)")
    for access in ACCESSES:
        plain, ours, whole = (best(measure, access, rounds) for measure in (hook, run, machine))
        print(f"{access:14}{plain:9.2f}{ours:9.2f}{ours / plain:7.2f}{whole:9.2f}{whole / plain:7.2f}")


if __name__ == "__main__":
    main()
