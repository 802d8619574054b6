"""Deletion of a study's old runs, or of only their activations, in two steps: plan and apply.

A scheduled study whose seed changes leaves a new run each time.  `plan_retention` only reads.
`apply_retention` deletes what a plan says, and checks each run again while it holds its lease.  No
run is touched that is unfinished, at work, being read, renamed, unreadable, of another study, or
behind a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime

from ldmprobe_core.errors import LdmprobeError, UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import hold_lease, holder_of
from ldmprobe_core.storage.lifecycle.reading import PRUNER, READER_SUFFIX
from ldmprobe_core.storage.lifecycle.schedule_record import read_schedule_record
from ldmprobe_core.storage.run import Run

KEEP, DELETE, STRIP, SKIP = "keep", "delete", "delete activations", "left alone"
"""Actions on a run; `STRIP` deletes the chunks of its activations, and nothing else."""

PARTLY = "deleted in part"
"""Action on a run of which some files could not be deleted; the next call goes on."""

_MOST_WATCHED = 16
"""Largest number of leases that are watched at once."""

_GROUPS = ("activations", "activations_permuted")


@dataclass(frozen=True)
class Retention:
    """Planned action on one run: keep it, delete it, or delete its activations.

    Attributes:
        url: URL of the run.
        action: one of `KEEP`, `DELETE`, `STRIP`, `SKIP` and `PARTLY`.
        size: number of bytes that the action frees.
        reason: why the run, or a part of it, is left alone; empty for other actions.
    """

    url: str
    action: str
    size: int = 0
    reason: str = ""


def plan_retention(
    store: str,
    study: str,
    keep: int | None = None,
    keep_activations: int | None = None,
    scheduled_only: bool = False,
    protected: str = "",
) -> list[Retention]:
    """Plan which old finished runs of a study to delete, and which to keep without activations.

    A study is known by its name, and a run's age by the time at which it was created.

    Args:
        store: folder or ``s3://bucket/prefix`` that contains runs.
        study: name of the study.
        keep: number of finished runs to keep, from 1; None keeps all.
        keep_activations: number of finished runs whose activations to keep, from 0; None keeps all.
        scheduled_only: consider only runs that a schedule started; their age is that of the date
            for which they were scheduled.
        protected: URL of a run that is never deleted; its activations may be.

    Returns:
        the action for each run of the study, and for each folder that has its name but cannot be
        read; unfinished runs and those that are left alone do not count as kept.

    Raises:
        UserError: a number is too small, there is no number, or the store cannot be reached.
    """
    _check_numbers(keep, keep_activations)
    location = Location(store)
    location.require_reachable()
    finished, skipped = _runs_of(location, study, scheduled_only)
    actions = []
    for rank, name in enumerate(finished):
        run = Location(f"{location.url}/{name}")
        if keep is not None and rank >= keep and run.url != protected:
            actions.append(Retention(run.url, DELETE, run.size()))
            continue
        size = 0
        if keep_activations is not None and rank >= keep_activations:
            size = sum(Location(f"{run.url}/{part}").size() for part in _chunk_folders(run))
        actions.append(Retention(run.url, STRIP if size else KEEP, size))
    return actions + skipped


def _runs_of(
    location: Location, study: str, scheduled_only: bool
) -> tuple[list[str], list[Retention]]:
    """Return the names of a study's finished runs, newest first, and the runs that are skipped."""
    present = location.folders("")
    skipped: list[Retention] = []
    finished: list[tuple[date, datetime, str]] = []
    for name in present:
        if not location.has(f"{name}/study.json"):
            continue
        if name.rpartition("-")[0] != study and not _has_study(location, name, study):
            continue
        url = f"{location.url}/{name}"
        record = read_schedule_record(Location(url)) if scheduled_only else None
        if scheduled_only and record is None:
            continue
        reason = _hindrance(url, study) or _work_on(url, present)
        if reason:
            skipped.append(Retention(url, SKIP, reason=reason))
        else:
            day = record.scheduled_for if record else date.min
            finished.append((day, _created(Location(url)), name))
    return [name for *_, name in sorted(finished, reverse=True)], skipped


def _created(run: Location) -> datetime:
    """Return when a run was created, by the store's clock."""
    # Every start of a study writes study.json again, but `identity` is written once.
    try:
        return run.modified("identity")
    except FileNotFoundError:
        return run.modified("study.json")


def apply_retention(plan: list[Retention], study: str) -> list[Retention]:
    """Delete the runs and activations that a plan names; return the plan with what was done.

    Args:
        plan: result of `plan_retention`.
        study: name of the study for which the plan was made.

    Returns:
        the plan, in which a run that has meanwhile become unfit for deletion is left alone.
    """
    done = []
    for item in plan:
        begun = False
        if item.action not in (DELETE, STRIP):
            done.append(item)
            continue
        try:
            with hold_lease(item.url, PRUNER):
                store, _, _ = item.url.rpartition("/")
                present = [f for f in Location(store).folders("") if f"{store}/{f}" != _own(item)]
                reason = _hindrance(item.url, study) or _work_on(item.url, present, watch=True)
                if not reason:
                    before, begun = Location(item.url).size(), True
                    _delete(item, present)
        except (LdmprobeError, OSError) as error:
            # After an error, only this run is skipped, and the loop goes on with the next run.  The
            # next call of `apply_retention` tries again to delete from the skipped run.
            reason = str(error).partition(". Fix")[0]
            if begun and (part := _deleted_part(item.url, before, reason)):
                done.append(part)
                continue
        done.append(Retention(item.url, SKIP, reason=reason) if reason else item)
    return done


def _deleted_part(url: str, before: int, reason: str) -> Retention | None:
    """Return what was done with a run whose deletion failed; None if it has all its bytes.

    Args:
        before: size of the run in bytes before the deletion.
        reason: why the deletion failed.
    """
    try:
        freed = before - Location(url).size()
    except (LdmprobeError, OSError):
        # The store does not answer any more.  How much is gone is not known, but some may be.
        return Retention(url, PARTLY, reason=reason)
    return Retention(url, PARTLY, freed, reason) if freed else None


def _delete(item: Retention, present: list[str]) -> None:
    """Delete a run or its activations, as a plan's item states.

    Args:
        item: action on a run that no process works on.
        present: names of the folders beside the run.
    """
    run = Location(item.url)
    if item.action == STRIP:
        for folder in list(_chunk_folders(run)):
            run.remove_folder(folder)
        return
    # Remove groups before the root's files.  If the process ends in between, the root's files still
    # identify a finished run of the study, and the next call continues the deletion.
    for folder in run.folders(""):
        run.remove_folder(folder)
    run.remove_folder()
    # Readers whose process was killed leave their leases behind.
    store, _, name = item.url.rpartition("/")
    for folder in present:
        if folder.startswith(f"{name}{READER_SUFFIX}"):
            Location(store).remove_folder(folder)


def _chunk_folders(run: Location) -> Iterator[str]:
    """Yield, for each layer, the folder that holds the chunks of its activations.

    Coordinates and metadata stay, so that the missing chunks can be named, and made again.
    """
    for group in _GROUPS:
        for layer in run.folders(group):
            if "c" in run.folders(f"{group}/{layer}/activation"):
                yield f"{group}/{layer}/activation/c"


def _hindrance(url: str, study: str) -> str:
    """Return the reason not to delete a run, or an empty text; leases are not checked."""
    run = Run(url)
    if link := _link_in(run.location):
        return f"{link} is a link"
    try:
        found = run.study
        if found.name != study:
            return f"a run of the study {found.name}"
        if found.run_name != run.url.rpartition("/")[2]:
            return "it was renamed"
        return "" if run.location.has("summary.json") else "unfinished"
    except LdmprobeError as error:
        return f"unreadable: {error}".partition(". Fix")[0]


def _link_in(run: Location) -> str:
    """Return the path of the first symbolic link in a local run's folder; empty if none."""
    if run.remote:
        return ""
    if os.path.islink(run.url):
        return run.url
    for folder, subfolders, files in os.walk(run.url):
        for name in (*subfolders, *files):
            if os.path.islink(path := f"{folder}/{name}"):
                return path
    return ""


def _work_on(url: str, present: list[str], watch: bool = False) -> str:
    """Name a process that reads a run, or works on it or its interventions; empty if none does.

    Args:
        present: names of the folders beside the run, among which are the leases.
        watch: whether to watch leases that are old by the clocks, which takes half a minute.
    """
    store, _, name = url.rpartition("/")
    leased = [folder.removesuffix(".lease") for folder in present if folder.endswith(".lease")]
    own = [f"{store}/{one}" for one in leased if one == name or one.startswith(f"{name}.")]
    with ThreadPoolExecutor(_MOST_WATCHED) as pool:
        holders = list(pool.map(lambda one: holder_of(one, lambda _: watch), own))
    return next((f"{one.description} works on it" for one in holders if one is not None), "")


def _own(item: Retention) -> str:
    return f"{item.url}.lease"


def _has_study(location: Location, name: str, study: str) -> bool:
    """Return whether a folder of any name holds a run of the study."""
    try:
        return bool(Run(f"{location.url}/{name}").study.name == study)
    except LdmprobeError:
        return False


def _check_numbers(keep: int | None, keep_activations: int | None) -> None:
    if keep is None and keep_activations is None:
        raise UserError(
            "keep: neither keep nor keep_activations is given (None). Fix: give one of them"
        )
    if keep is not None and keep < 1:
        raise UserError(f"keep: less than 1 ({keep}). Fix: give 1 or more, or delete runs by hand")
    if keep_activations is not None and keep_activations < 0:
        raise UserError(
            f"keep_activations: negative ({keep_activations}). Fix: give 0 to delete "
            "the activations of all runs, or a larger number"
        )
