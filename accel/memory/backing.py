"""What host memory RAM is made of: anonymous memory, a memfd or a file, in ordinary or huge pages.

`Backing` is a value and touches nothing; `open_backing` and `fit` get the file behind it to the size that
`RamBlock` then maps. Layer: below `ram_block`.

Sources, for what the calls do: mmap(2), madvise(2), memfd_create(2), fcntl(2) on seals.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable
from typing import Literal

from attrs import field, frozen

from accel.address import format_size, parse_size
from accel.errors import AddressError, OptionError
from accel.memory.host_file import file_page_size, open_regular
from accel.memory.host_memory import huge_page_problem

#: What `Backing.advice` may name, and the advice of madvise(2) that it is.
ADVICE = {
    "dontdump": mmap.MADV_DONTDUMP,
    "dontfork": mmap.MADV_DONTFORK,
    "hugepage": mmap.MADV_HUGEPAGE,
    "mergeable": mmap.MADV_MERGEABLE,
    "nohugepage": mmap.MADV_NOHUGEPAGE,
    "random": mmap.MADV_RANDOM,
    "sequential": mmap.MADV_SEQUENTIAL,
}
_OPPOSITES = (("hugepage", "nohugepage"), ("random", "sequential"))
#: The kernel leaves explicit huge pages whole and never merges them, so this advice has nothing to act on there.
_NOT_FOR_HUGE_PAGES = ("hugepage", "mergeable", "nohugepage")


def _bytes(name: str, value: object) -> int:
    """Return the bytes that the field `name` means."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise OptionError("backing", name, value, "is no size; write bytes or a unit, such as 4096 or 2M")
    try:
        return parse_size(value)
    except AddressError as error:
        raise OptionError("backing", name, value, str(error)) from error


def _offset(value: int | str) -> int:
    return _bytes("offset", value)


def _page_size(value: int | str | None) -> int | None:
    return None if value is None else _bytes("huge_pages", value)


def _path(value: str | os.PathLike[str]) -> str:
    try:
        path = os.fsdecode(value)
        os.fsencode(path)
    except (TypeError, UnicodeError) as error:
        raise OptionError("backing", "path", value, f"is no path ({error})") from error
    return path


def _advice(value: Iterable[str]) -> frozenset[str]:
    names = ", ".join(ADVICE)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError("backing", "advice", value, f"is no set of names; write a set, of {names}")
    found = list(value)
    for one in found:
        if not isinstance(one, str) or one not in ADVICE:
            raise OptionError("backing", "advice", one, f"is none of {names}")
    return frozenset(found)


@frozen(kw_only=True)
class Backing:
    """What RAM is made of; made by `anonymous`, `memfd` and `file`, which say what the options mean.

    >>> Backing.memfd(huge_pages="2M").huge_pages
    2097152

    Raises:
        OptionError: A field's value is malformed, or does not go with another's.
    """

    kind: Literal["anonymous", "memfd", "file"]
    path: str = field(default="", converter=_path)
    offset: int = field(default=0, converter=_offset)
    shared: bool = False
    readonly: bool = False
    create: bool = False
    huge_pages: int | None = field(default=None, converter=_page_size)
    prefault: bool = False
    advice: frozenset[str] = field(default=frozenset(), converter=_advice)

    @classmethod
    def anonymous(
        cls, *, huge_pages: int | str | None = None, prefault: bool = False, advice: Iterable[str] = ()
    ) -> Backing:
        """Use memory of this process alone.

        Args:
            huge_pages: Size of the explicit huge pages to use, such as ``"2M"``. All of `max_size` is taken out of
                the host's pool at creation, so that none is missing later.
            prefault: Touch all of `size` at creation. What the block grows by later is not touched.
            advice: Names from `ADVICE`, told to the kernel for all of `max_size`.
        """
        return cls(kind="anonymous", huge_pages=huge_pages, prefault=prefault, advice=advice)

    @classmethod
    def memfd(
        cls, *, huge_pages: int | str | None = None, prefault: bool = False, advice: Iterable[str] = ()
    ) -> Backing:
        """Use a memfd, which other processes can map through `RamBlock.fd`; its size is sealed.

        The options mean what they mean for `anonymous`.
        """
        return cls(kind="memfd", shared=True, huge_pages=huge_pages, prefault=prefault, advice=advice)

    @classmethod
    def file(
        cls,
        path: str | os.PathLike[str],
        offset: int | str = 0,
        shared: bool = True,
        readonly: bool = False,
        create: bool = False,
        *,
        huge_pages: int | str | None = None,
        prefault: bool = False,
        advice: Iterable[str] = (),
    ) -> Backing:
        """Use a regular file, also one on tmpfs (/dev/shm) or hugetlbfs, from `offset` on.

        A shared, writable file that is shorter than the block is extended, sparse; none is ever cut. Whoever cuts
        it while it is mapped, and a file system that fills up under a sparse one, ends this process by SIGBUS on
        the next access there: use `memfd` among processes that do not trust each other, and `prefault` against the
        second.

        Args:
            path: The file.
            offset: Where the block begins in it, a multiple of the page size.
            shared: Write to the file; otherwise writes stay in this process.
            readonly: Refuse writes; the guest must see it as ROM, too.
            create: Make the file (mode 0600) where there is none; it stays, also if the block then fails.
            huge_pages: Insist on a hugetlbfs of this page size; a file on one has its pages in any case.
            prefault: As for `anonymous`.
            advice: As for `anonymous`.
        """
        return cls(
            kind="file",
            path=path,
            offset=offset,
            shared=shared,
            readonly=readonly,
            create=create,
            huge_pages=huge_pages,
            prefault=prefault,
            advice=advice,
        )

    @property
    def writes_file(self) -> bool:
        """Whether what is written to RAM goes to a file or memfd."""
        return self.shared and not self.readonly

    def __attrs_post_init__(self) -> None:
        for name, problem in (self._field_problem(), self._file_problem(), self._page_problem()):
            if problem:
                value: object = getattr(self, name)
                raise OptionError("backing", name, sorted(self.advice) if name == "advice" else value, problem)

    def _field_problem(self) -> tuple[str, str]:
        if self.kind not in ("anonymous", "memfd", "file"):
            return "kind", "is none of anonymous, memfd, file"
        for name in ("shared", "readonly", "create", "prefault"):
            if type(getattr(self, name)) is not bool:
                return name, "must be True or False"
        if self.kind != "file":
            for name in ("path", "offset", "readonly", "create"):
                if getattr(self, name):
                    return name, f"means nothing for {self.kind} memory; use Backing.file"
        if self.kind == "anonymous" and self.shared:
            return "shared", "anonymous memory has nothing to share it by; use Backing.memfd"
        if self.kind == "memfd" and not self.shared:
            return "shared", "a memfd is there to be shared; use Backing.anonymous"
        return "", ""

    def _file_problem(self) -> tuple[str, str]:
        if self.kind != "file":
            return "", ""
        if not self.path or "\0" in self.path:
            return "path", "is empty or holds a NUL, and names no file; write the path of a regular file"
        if self.create and self.readonly:
            return "create", "a new file has nothing to read; leave out create or readonly"
        if self.create and not self.shared:
            return "create", "a private mapping writes nothing to a new file; use shared=True or Backing.anonymous"
        page = self.huge_pages or mmap.PAGESIZE
        if self.offset % page:
            return "offset", f"is not a multiple of the page size {format_size(page)}; align it"
        return "", ""

    def _page_problem(self) -> tuple[str, str]:
        size = self.huge_pages
        if size is not None and not (mmap.PAGESIZE < size < 1 << 63 and size.bit_count() == 1):
            return "huge_pages", f"is no power of two above {format_size(mmap.PAGESIZE)}; write such as 2M or 1G"
        for pair in _OPPOSITES:
            if self.advice.issuperset(pair):
                return "advice", f"{pair[0]} and {pair[1]} contradict each other; leave one out"
        for name in _NOT_FOR_HUGE_PAGES:
            if size is not None and name in self.advice:
                return "advice", f"{name} does not act on explicit huge pages; leave out it or huge_pages"
        if "mergeable" in self.advice and (self.shared or self.readonly):
            return "advice", "only private, writable pages are mergeable; leave it out or use Backing.anonymous"
        return "", ""


# the file behind it


def open_backing(backing: Backing, name: str) -> tuple[int, int]:
    """Open the file or memfd behind `backing`; return its fd, or -1 for none, and the size of its pages.

    Raises:
        AddressError: The host does not have it; nothing is left open. The message begins with the block's `name`.
    """
    huge = backing.huge_pages
    if backing.kind == "anonymous":
        return -1, huge or mmap.PAGESIZE
    if backing.kind == "file":
        return _open_file(backing, f"RAM '{name}': file '{backing.path}'")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge:
        flags |= os.MFD_HUGETLB | (huge.bit_length() - 1) << os.MFD_HUGE_SHIFT
    # The kernel takes 249 bytes; 60 characters have at most 240. What UTF-8 has no bytes for shows as a "?".
    label = name[:60].encode("utf-8", "replace").decode()
    try:
        return os.memfd_create(label, flags), huge or mmap.PAGESIZE
    except OSError as error:
        problem = (huge and huge_page_problem(huge, 0)) or "its memfd cannot be made; use Backing.anonymous"
        raise AddressError(f"RAM '{name}': {problem} ({error})") from error


def _open_file(backing: Backing, what: str) -> tuple[int, int]:
    fd = open_regular(backing.path, what, write=backing.writes_file, create=backing.create)
    page_size = file_page_size(fd)
    problem = ""
    if backing.huge_pages not in (None, page_size):
        problem = (
            f"has pages of {format_size(page_size)}, not of {format_size(backing.huge_pages or 0)}; "
            "use one on a hugetlbfs mounted with that pagesize, or leave huge_pages out"
        )
    elif backing.offset % page_size:
        problem = f"has pages of {format_size(page_size)}, so offset {backing.offset:#x} cannot begin one; align it"
    if problem:
        os.close(fd)
        raise AddressError(f"{what} {problem}")
    return fd, page_size


def fit(backing: Backing, fd: int, size: int, name: str) -> None:
    """Make the file or memfd behind `backing` long enough for `size` bytes, sparse; none is ever cut.

    Raises:
        AddressError: It is too short and is not written to, or cannot grow.
    """
    end = backing.offset + size
    try:
        if backing.kind == "memfd":
            os.ftruncate(fd, end)
            # A process that it is shared with could cut it, which would end this one by SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        elif (present := os.fstat(fd).st_size) < end:
            if not backing.writes_file:
                raise AddressError(
                    f"RAM '{name}': file '{backing.path}' has {present:#x} bytes, but offset + max_size is {end:#x} "
                    "and it is not written to; use less of it, or make it longer"
                )
            # ftruncate would cut the file if someone else made it longer just now; this only ever extends.
            os.posix_fallocate(fd, end - 1, 1)
    except (OSError, OverflowError) as error:
        which = f"file '{backing.path}'" if backing.kind == "file" else "its memfd"
        raise AddressError(f"RAM '{name}': {which} cannot have {end:#x} bytes ({error}); use less") from error
