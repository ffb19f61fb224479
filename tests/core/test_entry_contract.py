"""docs/reference/entry-contract.md against the code that keeps it."""

import re
from pathlib import Path

from accel.arch.x86 import BootMode, ram_layout
from accel.arch.x86_boot import plan_boot

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "entry-contract.md").read_text(encoding="utf-8")
GIB = 1 << 30


def plan():
    return plan_boot(entry=0x100000, mode=BootMode.LONG64, cpus=3, occupied=(), ram=ram_layout(4 * GIB))


def test_entry_contract_boot_info_table_decodes_what_is_written():
    boot = plan()
    (page,) = [data for address, data in boot.segments if address == boot.info]
    rows = re.findall(r"^\| (\d+) \| ([48]) \| (.+?) \|", TEXT, re.MULTILINE)
    found = {name: int.from_bytes(page[int(at) : int(at) + int(size)], "little") for at, size, name in rows}
    assert found == {
        "magic": 0x4C434341,
        "version": 1,
        "size": 48,
        "mode bits": 64,
        "vCPU count": 3,
        "stack size": 16 << 10,
        "RAM below 4 GiB": 3 * GIB,
        "RAM above 4 GiB": 1 * GIB,
        "entry": 0x100000,
    }
    assert sum(int(size) for _, size, _ in rows) == found["size"]


def test_entry_contract_names_the_selectors_that_are_loaded():
    state = plan().state(0)
    assert f"| {state.cs.selector:#04x} | 32-bit code | 64-bit code |" in TEXT
    assert f"| {state.ds.selector:#04x} | data | data |" in TEXT
