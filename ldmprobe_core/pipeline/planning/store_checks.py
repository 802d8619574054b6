"""Checks of a store, and of the space on a disk, before anything is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import StudyPlan
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run


def check_store(plan: StudyPlan, run: Run) -> None:
    """Check that a store is no run, is writable, and has enough space on a local disk for a run.

    Args:
        plan: plan with the expected size of the run.
        run: the study's run, which need not exist yet.

    Raises:
        UserError: the store is a run or a folder in one, it is not writable, or the disk is too
            small.
    """
    # A bucket that cannot be reached is refused by this, in a sentence.
    run.location.require_writable()
    if not run.exists:
        _require_no_run_around(run.url.rpartition("/")[0] or "/")
    if not run.location.remote and not run.exists:
        remedy = "lower prompts.samples, name fewer capture.layers, or choose another store"
        require_space(
            Path(run.url), plan.bytes, f"store {run.url!r}", "the study needs about", remedy
        )


def _require_no_run_around(store: str) -> None:
    """Check that a store, and every folder around a local one, is no run.

    Folders around a prefix in a bucket are not looked at, because credentials may be limited to it.

    Raises:
        UserError: one of them has the files of a run.
    """
    location = Location(store)
    folders = [] if location.remote else [str(one) for one in Path(store).resolve().parents]
    for folder in (location.url, *folders):
        around = Location(folder)
        if around.has("study.json") and around.has("zarr.json"):
            place = "it is" if folder == location.url else "it is in"
            raise UserError(
                f"store {store!r}: {place} a run ({folder}). Fix: give the folder that holds "
                "the run, or another one"
            )


def require_space(folder: Path, needed: int, place: str, user: str, remedy: str) -> None:
    """Check that the disk of a folder has room; one that states no size is not checked.

    Args:
        folder: a folder, which need not exist yet.
        needed: number of bytes.
        place: name of the folder in the message.
        user: words for what needs the space, such as ``the files need``.
        remedy: advice in the message.

    Raises:
        UserError: fewer bytes are free.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    # Some network file systems, and those in memory without a limit, report the size 0.
    if usage.total and needed > usage.free:
        raise UserError(
            f"{place} has {_size_text(usage.free, math.floor)} free and {user} "
            f"{_size_text(needed, math.ceil)}. Fix: {remedy}"
        )


def _size_text(size: int, rounded: Callable[[float], int]) -> str:
    """Return a number of bytes in MB or GB with one decimal, rounded in the given direction."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{rounded(size / unit * 10) / 10:.1f} {name}"
