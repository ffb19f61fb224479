"""The reverse map: from a guest page, or a host's address, to the entries of the shadow page table that lead to it.

Layer: above `spte`. Updates need it: a log that begins knows guest pages, a notifier knows host addresses, and neither
knows who maps them. A page has one entry in direct shadow pages, and as many in indirect ones as the guest has
mappings of it. KVM has one map, by guest page, and goes from a host's address to the memslots that have it.
"""

from __future__ import annotations

from accel_mock.kvm.spte import Spte

_Entries = dict[int, list[Spte]]


class ReverseMap:
    """The reverse map of one VM; under the MMU lock."""

    def __init__(self) -> None:
        self._by_gfn: _Entries = {}
        self._by_address: _Entries = {}

    def __len__(self) -> int:
        """How many guest pages are mapped."""
        return len(self._by_gfn)

    def add(self, spte: Spte) -> None:
        """Note where an entry leads."""
        self._by_gfn.setdefault(spte.gfn, []).append(spte)
        self._by_address.setdefault(spte.address, []).append(spte)

    def remove(self, spte: Spte) -> None:
        """Note that an entry leads nowhere any more, if it did."""
        _remove(self._by_gfn, spte.gfn, spte)
        _remove(self._by_address, spte.address, spte)

    def of_guest(self, first: int, last: int) -> list[Spte]:
        """Return the entries of guest pages [first, last). O(the fewer: pages asked for, pages mapped)."""
        return _within(self._by_gfn, first, last)

    def of_host(self, first: int, last: int) -> list[Spte]:
        """Return the entries of host addresses [first, last), in pages. O(the fewer: pages asked for, pages mapped)."""
        return _within(self._by_address, first, last)


def _remove(entries: _Entries, key: int, spte: Spte) -> None:
    left = [one for one in entries.get(key, ()) if one is not spte]
    if left:
        entries[key] = left
    else:
        entries.pop(key, None)


def _within(entries: _Entries, first: int, last: int) -> list[Spte]:
    keys = range(first, last) if last - first < len(entries) else [key for key in entries if first <= key < last]
    return [spte for key in keys for spte in entries.get(key, ())]
