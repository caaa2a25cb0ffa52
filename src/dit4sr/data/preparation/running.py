"""Units of work on several processes of one machine, with progress."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from dit4sr.data.preparation.additions import Additions
from dit4sr.data.preparation.cutting import cut_unit, read_record
from dit4sr.data.preparation.listing import Listing, Unit
from dit4sr.data.preparation.settings import Execution, PrepareSettings
from dit4sr.data.preparation.sources import Source, open_source
from dit4sr.errors import UserError
from dit4sr.files import disk_errors

# A fork of a process with threads can inherit a lock that nobody will ever release.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def run_units(work: Path, settings: PrepareSettings, source: Source, listing: Listing, execution: Execution) -> None:
    """Do the units of this part that are not done yet.

    Raises:
        UserError: the disk is full or cannot be written to, or a process was killed; what is done is kept.
    """
    size = listing.unit_size
    numbers = range(execution.part, listing.units, execution.parts)
    progress = tqdm(
        total=sum(min(size, listing.photos - number * size) for number in numbers),
        desc="preparing" if execution.whole else f"part {execution.part}/{execution.parts}",
        unit=listing.noun,
        mininterval=0.5 if sys.stderr.isatty() else 30,  # seconds; few lines where it goes to a file
        leave=False,
    )
    mine = (unit for unit in listing if unit.number in numbers)
    with progress, disk_errors(work.parent, goes_on=True):
        pending = _pending(work, mine, progress)
        if execution.processes == 1:
            additions = Additions(settings, execution.device)
            for unit in pending:
                cut_unit(work, settings, source, unit, additions)
                progress.update(len(unit.locators))
        else:
            _in_processes(work, settings, pending, execution, progress)


def _pending(work: Path, units: Iterator[Unit], progress: tqdm) -> Iterator[Unit]:
    """The units that are not done; those that are count as progress, but not in its rate."""
    for unit in units:
        if read_record(work, unit) is None:
            yield unit
        else:
            progress.initial += len(unit.locators)
            progress.update(len(unit.locators))


def _in_processes(
    work: Path, settings: PrepareSettings, pending: Iterator[Unit], execution: Execution, progress: tqdm
) -> None:
    context = multiprocessing.get_context(START_METHOD)
    if START_METHOD == "forkserver":
        context.set_forkserver_preload([__name__])
    running: dict[Future[None], int] = {}
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(execution.processes, context, initializer=_start)
    try:
        for unit in pending:
            running[pool.submit(_cut, work, settings, unit, execution.device)] = len(unit.locators)
            if len(running) >= 2 * execution.processes:  # enough for nobody to wait; the rest stays unread
                _collect(running, progress)
        while running:
            _collect(running, progress)
    except BrokenProcessPool as error:
        raise UserError(
            "a process was killed, perhaps for want of memory: run the same command again, which goes on where it "
            f"stopped, with fewer than processes={execution.processes}."
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # what it was at will be done again
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(running: dict[Future[None], int], progress: tqdm) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        photos = running.pop(future)
        future.result()
        progress.update(photos)


def _start() -> None:
    """Make a worker process end with the main process, also where that one is killed."""
    import signal

    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent_gone = parent.join

    def watch() -> None:
        parent_gone()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cut(work: Path, settings: PrepareSettings, unit: Unit, device: str) -> None:
    source, additions = _tools(settings, device)
    cut_unit(work, settings, source, unit, additions)


def _tools(settings: PrepareSettings, device: str) -> tuple[Source, Additions]:
    fingerprint = settings.fingerprint()
    if fingerprint not in _OPENED:
        _OPENED[fingerprint] = open_source(settings), Additions(settings, device)
    return _OPENED[fingerprint]


_OPENED: dict[str, tuple[Source, Additions]] = {}
"""Of a worker process, which serves one prepare."""
