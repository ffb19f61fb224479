"""Runs a workload: builds its machine, changes its memory while it runs, judges how it ended.

Layer: the top of this package; `accelctl` and tests call it.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from attrs import evolve

from accel.errors import ImageError, InhibitTimeoutError, UsageError
from accel.interrupts import interrupts_held_back
from accel.loaders.image import Image, LoadOptions
from accel.loaders.load import load_image
from accel.machine import Machine
from accel.options import parse_options
from accel.plugin_calls import create_device, loaders
from accel.plugins import plugin_manager
from accel.program import GuestProgram
from accel.result import Outcome, RunResult
from accel.run import Run
from accel.workload.changes import Changes
from accel.workload.console import Console
from accel.workload.expect import judge, judge_until
from accel.workload.line_input import DescriptorChunks, LineInput, TakesInput
from accel.workload.regions import mount_regions
from accel.workload.report import RamUse, Report
from accel.workload.schema import ImageSpec, RunSpec, Workload
from accel.workload.worker import Worker


def run_workload(workload: Workload, name: str = "workload", *, console: BinaryIO | None = None) -> Report:
    """Run a workload in a machine of its own.

    Args:
        workload: What to run.
        name: What the report calls it.
        console: Takes what the guest prints; it is in the report in any case.

    Raises:
        UsageError: The workload asks for what cannot be.
        NoAcceleratorError: None of its accelerators can run it.
        AccelError: The host's side failed; see `Run.wait`.
    """
    with Session(workload, name, console=console) as session:
        return session.run()


class Session:
    """A workload's machine, ready to run once; a context manager that closes it.

    Attributes:
        machine: The machine.
        console: What all console devices write to.
        line: The first device that takes input, or None.
        mounts: The workload's regions in its memory, by name.
    """

    def __init__(self, workload: Workload, name: str = "workload", *, console: BinaryIO | None = None) -> None:
        self._workload = workload
        self._name = name
        image = _image(workload.image)
        spec = workload.machine
        irqchip = workload.image.firmware is not None if spec.irqchip is None else spec.irqchip
        until = (workload.run.until or "").encode(errors="surrogateescape")
        self.console = Console(console, until=until, on_found=lambda: self.machine.request_stop(Outcome.PRINTED))
        self.line: TakesInput | None = None
        self.machine = Machine.create(
            spec.accelerators,
            memory=spec.memory,
            cpus=spec.cpus,
            irqchip=irqchip,
            pit=spec.pit,
            backing=spec.backing,
            options=workload.accelerator_options,
            executes=image.executes if isinstance(image, Image) else None,
        )
        try:
            self._attach_devices()
            self.mounts = mount_regions(self.machine, workload.regions)
            self.machine.load(image)
        except BaseException:
            self.machine.close()
            raise

    def run(
        self,
        timeout: float | None = None,
        chunks: Iterable[bytes] | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> Report:
        """Run to the end and judge it; an interrupt (Ctrl-C) ends it with the outcome ``stopped``.

        Args:
            timeout: Seconds, in place of the workload's own.
            chunks: Input for the serial line, in place of the workload's own.
            wake: Ends the iteration of `chunks` from another thread.

        Raises:
            UsageError: There is input, and no device that takes it.
            AccelError: The host's side failed; see `Run.wait`.
        """
        if timeout is None and self._workload.run.timeout is not None:
            timeout = self._workload.run.timeout * 1e-6
        changes = Changes(self.machine, self._workload.changes, self.mounts)
        with ExitStack() as stack:
            workers: list[Worker] = [changes]
            if chunks is None:
                chunks, wake = stack.enter_context(_own_input(self._workload.run))
            if chunks is not None:
                workers.append(LineInput(self.machine, self._require_line(), chunks, wake))
            result = self._run(timeout, workers)
        return self._report(result, changes.made)

    def close(self) -> None:
        """Release everything; may be called twice."""
        self.machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attach_devices(self) -> None:
        types = plugin_manager().devices()
        for index, spec in enumerate(self._workload.devices):
            kind = types[spec.type]
            device = create_device(kind, parse_options(f"device[{index}]", kind.options, spec.options))
            if kind.console:
                device.output = cast(BinaryIO, self.console)  # type: ignore[attr-defined]
            if self.line is None and isinstance(device, TakesInput):
                self.line = device
            self.machine.attach(device)
        until = self._workload.run.until
        if until is not None and not any(types[spec.type].console for spec in self._workload.devices):
            raise UsageError(f"the run lasts until {until!r} is printed, and no device prints; add a debug-console")

    def _require_line(self) -> TakesInput:
        if self.line is None:
            raise UsageError("there is input, and no device that takes it; add a serial device")
        return self.line

    def _run(self, timeout: float | None, workers: list[Worker]) -> RunResult:
        run: Run | None = None
        try:
            try:
                with interrupts_held_back():
                    run = self.machine.start()
                    for worker in workers:
                        worker.start()
                result = run.wait(timeout)
            except KeyboardInterrupt:
                if run is None:
                    raise
                # What the guest did until then is still worth telling.
                run.stop()
                result = run.wait()
        except InhibitTimeoutError as stuck:
            # A vCPU that does not come out kept the run from ending; why it was to end is worth more.
            for worker in workers:
                if worker.error is not None:
                    raise worker.error from stuck
            raise
        finally:
            with ExitStack() as stack:  # all of them, also where an interrupt ends the wait for one
                for worker in reversed(workers):
                    stack.callback(worker.stop)
        for worker in workers:
            if worker.error is not None:
                raise worker.error
        return result

    def _report(self, result: RunResult, changes: int) -> Report:
        console, truncated = self.console.captured, self.console.truncated
        expect = self._workload.expect
        return Report(
            name=self._name,
            result=result,
            console=console,
            console_total=self.console.total,
            console_truncated=truncated,
            changes=changes,
            verdicts=(
                *judge_until(self._workload.run.until, console, found=self.console.found, truncated=truncated),
                *judge(expect, result, console, truncated=truncated, changes=changes),
            ),
            expected_outcome=expect.outcome,
            ram=self._ram_use(),
        )

    def _ram_use(self) -> tuple[RamUse, ...]:
        """Return what the machine's RAM and the regions with memory use now."""
        regions = [self.machine.ram, *(mount.region for mount in self.mounts.values())]
        return tuple(
            RamUse(one.name, block.size, block.backing.kind, block.page_size, block.resident_bytes())
            for one in regions
            if (block := one.block) is not None
        )


def _image(spec: ImageSpec) -> Image | GuestProgram:
    """Return what the vCPUs start with."""
    if spec.program is not None:
        return spec.program
    known, payload = loaders(), None
    if spec.path is not None:
        options = LoadOptions(spec.load_address, spec.entry, spec.mode)
        payload = load_image(os.fspath(spec.path), options, known, spec.loader)
        if spec.firmware is None:
            return payload
    if spec.firmware is None:
        raise UsageError("nothing to run: name an image, a program or firmware")
    firmware = load_image(os.fspath(spec.firmware), LoadOptions(), known, "firmware")
    return firmware if payload is None else _behind(firmware, payload)


def _behind(firmware: Image, payload: Image) -> Image:
    """Return `firmware` with `payload` in RAM, for the firmware to find there."""
    for segment in payload.segments:
        for taken in firmware.segments:
            if segment.range.overlaps(taken.range):
                raise ImageError(
                    payload.name, f"its bytes at {segment.range} are where the firmware lies; load it elsewhere"
                )
    segments = sorted((*firmware.segments, *payload.segments), key=lambda segment: segment.address)
    return evolve(firmware, segments=tuple(segments))


@contextmanager
def _own_input(spec: RunSpec) -> Iterator[tuple[Iterable[bytes] | None, Callable[[], None]]]:
    """Give the chunks of the workload's own input, if it has some, and what ends their iteration."""
    if spec.input is not None:
        yield [spec.input.encode()], lambda: None
    elif spec.input_file is None:
        yield None, lambda: None
    else:
        with _open_input(spec.input_file) as file:
            chunks = DescriptorChunks(file.fileno())
            try:
                yield chunks, chunks.wake
            finally:
                chunks.close()


def _open_input(path: Path) -> io.FileIO:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise UsageError(f"input {path}: cannot be opened: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"input {path}: is no regular file; feed it through standard input, with --input -")
    return io.FileIO(descriptor, "rb")
