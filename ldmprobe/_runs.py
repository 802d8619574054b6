"""Functions of the public API for studies and their stored runs.

They load, plan and run a study in this process, open its run, intervene on it, compare it with
others, and write its report.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmprobe._run import Run
from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.lifecycle.reading import reading
from ldmprobe_core.storage.run import Run as StoredRun
from ldmprobe_core.study import loading
from ldmprobe_core.study.schema import Study

if TYPE_CHECKING:
    from ldmprobe_core.interventions.results import InterventionSummary
    from ldmprobe_core.pipeline.planning.plan import StudyPlan
    from ldmprobe_core.storage.lease import Lease


_SURROGATES = re.compile(r"\\\\|\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
"""Pattern of an escaped backslash, or of the two escapes of a character beyond U+FFFF in JSON."""


def load_study(
    source: str | os.PathLike[str], overrides: Mapping[str, Any] | Sequence[str] | None = None
) -> Study:
    """Load a study from a YAML file, or by name from the studies in this package.

    Args:
        source: path of a YAML file, or the name of an included study such as ``tabletop``.
        overrides: values that replace those of the file, either by dotted key, such as
            ``{"sampling.steps": 20}``, or as strings of the form ``key=value``.

    Raises:
        UserError: the file does not exist, or one of its keys or values is not valid.

    Example::

        study = lp.load_study("tabletop", {"prompts.samples": 48, "sampling.steps": 8})
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={_yaml(key, value)}" for key, value in overrides.items()]
    given = [overrides] if isinstance(overrides, str) else list(overrides or ())
    for override in given:
        if not isinstance(override, str):
            raise UserError(
                f"overrides: {override!r:.60} is not text of the form key=value. Fix: write it as "
                "in sampling.steps=20, or give a mapping of keys to values"
            )
    return loading.load_study(source, given)


def _yaml(key: str, value: Any) -> str:
    """Write the value of an override as JSON, which YAML readers accept.

    Raises:
        UserError: the value has no such form, such as a set.
    """

    def plain(item: Any) -> Any:
        if isinstance(item, (np.generic, np.ndarray)):
            return item.tolist()
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        raise TypeError

    def escaped(pair: re.Match[str]) -> str:
        if pair[1] is None:
            return pair[0]
        code = 0x10000 + (int(pair[1], 16) - 0xD800) * 0x400 + int(pair[2], 16) - 0xDC00
        return f"\\U{code:08x}"

    try:
        # JSON writes an emoji as two escapes (a surrogate pair), which YAML does not join.
        return _SURROGATES.sub(escaped, json.dumps(value, default=plain))
    except (TypeError, ValueError, RecursionError):
        raise UserError(
            f"{key}: no key takes a value of type {type(value).__name__} ({value!r:.40}). Fix: "
            "give text, numbers, lists or mappings"
        ) from None


def plan(study: Study, pipeline: Any = None) -> StudyPlan:
    """Check that a study can run on this machine, and compute its sizes, without loading weights.

    Args:
        study: the study to check.
        pipeline: diffusers pipeline to study instead of the study's model, as in `run_study`.

    Returns:
        the plan, which contains the steps, the layers and their shapes, the expected storage and
        memory, and the packages and weights that are missing on this machine.  It can be printed.

    Raises:
        UserError: a setting of the study is wrong.

    Example::

        print(lp.plan(lp.load_study("tabletop")))
    """
    from ldmprobe_core.pipeline.model_cache import use_pipeline
    from ldmprobe_core.pipeline.planning.plan import plan_study

    _require_study(study)
    with use_pipeline(study, pipeline) as used:
        return plan_study(used)


def open_run(url: str | os.PathLike[str]) -> Run:
    """Open a stored run by its folder or S3 address, for reading.

    Args:
        url: folder or ``s3://bucket/prefix`` of the run.

    Raises:
        UserError: there is no run at this address, or it has another release's format.

    Example::

        run = lp.open_run("runs/tabletop-d405ac198a")
    """
    run = Run(_address(url))
    run.location.require_reachable()
    # Reading the study raises `UserError` if there is no run at this address.
    run.study  # noqa: B018
    return run


def _address(url: str | os.PathLike[str]) -> str:
    """Return a store's address as text.

    Raises:
        UserError: it is neither text nor a path.
    """
    if not isinstance(url, (str, os.PathLike)):
        raise UserError(
            f"store {url!r:.80}: not an address ({type(url).__name__}). Fix: give a local folder "
            "or s3://bucket/prefix"
        )
    return os.fspath(url)


def run_study(
    study: Study,
    store: str | os.PathLike[str] = "runs",
    progress: bool = True,
    pipeline: Any = None,
) -> Run:
    """Run a study in this process, or resume it if it was interrupted.

    This function needs no server and also works in a notebook.  If you need several workers,
    schedules or a web UI, use the command ``ldmprobe run``, which stores exactly the same results.

    Args:
        study: the study to run.
        store: folder or ``s3://bucket/prefix`` that contains runs.
        progress: whether to show a progress bar.
        pipeline: diffusers pipeline to study as it is, with its adapters, edited weights, device
            and scheduler, instead of the study's model and scheduler.  A digest of it is the run's
            ``model.source``, so that the run is resumed with the same pipeline only.

    Returns:
        the finished run, which contains a report.

    Raises:
        UserError: a setting of the study is wrong, the pipeline is not that of the run, or another
            process is working on the run.

    Example::

        run = lp.run_study(lp.load_study("tabletop", {"prompts.samples": 48}), "runs")
    """
    from ldmprobe_core.pipeline.model_cache import use_pipeline
    from ldmprobe_core.storage.filesystem import Location

    _require_study(study)
    # A malformed store address is refused here, before time is spent on planning the study.
    Location(address := _address(store))
    with use_pipeline(study, pipeline) as used:
        return _run_study(used, address, progress)


def _run_study(study: Study, store: str, progress: bool) -> Run:
    """Run a study, or resume it; see `run_study`."""
    from ldmprobe_core.analysis.records import peak_records
    from ldmprobe_core.analysis.report.build import build_report
    from ldmprobe_core.pipeline.planning.memory import planned_bytes
    from ldmprobe_core.pipeline.planning.plan import plan_study
    from ldmprobe_core.pipeline.planning.store_checks import check_store
    from ldmprobe_core.pipeline.prepare import check_fingerprints, prepare_run, run_in
    from ldmprobe_core.storage.lease import hold_lease

    planned = plan_study(study)
    planned.require_complete()
    target = run_in(store, planned.study)
    target.location.require_reachable()
    if target.location.has("summary.json"):
        check_fingerprints(target, planned.study)
        return Run(target.url)
    check_store(planned, target)
    # The estimate is made before the work, so that an error in it costs no computed units.
    memory = planned.memory
    holder = f"run_study (process {os.getpid()})"
    with planned.in_use(), hold_lease(target.url, holder) as lease:
        run = Run(prepare_run(planned.study, store).url)
        seconds, peaks = _carry_out(run, progress, lease)
        on_gpu = "GPU memory" in peaks
        planned_peaks = planned_bytes(memory, 1, on_gpu) if peaks else {}
        lease.require_held()
        build_report(run, seconds, memory=peak_records(planned_peaks, peaks))
    return run


def _carry_out(run: Run, progress: bool, lease: Lease) -> tuple[dict[str, float], dict[str, int]]:
    """Run the units of work that are not complete, as long as this process holds the lease.

    Returns:
        the seconds that each kind of unit took, and the peak memory of this process after images
        were generated and labeled, in bytes by name; empty if none were.
    """
    from rich.progress import Progress, TimeRemainingColumn

    from ldmprobe_core.models.devices import peak_memory
    from ldmprobe_core.pipeline.units import UNITS, carry_out_unit
    from ldmprobe_core.storage.units import GENERATE, LABEL

    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    columns = (
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, disable=not progress) as bar:
        for verb, operations in list(UNITS.items()):
            if operations.kind.per_group or not operations.kind.applies_to(run.study):
                continue
            started = time.monotonic()
            units = operations.list_units(run)
            for unit in bar.track(units, description=verb, total=len(units)):
                if not operations.is_done(run, *unit.index):
                    lease.require_held()
                    carry_out_unit(verb, run.url, *unit.index)
                    if operations.kind in (GENERATE, LABEL):
                        peaks = peak_memory()
            seconds[verb] = time.monotonic() - started
    return seconds, peaks


def intervene(
    run: StoredRun,
    prop: str = "foreground",
    shift: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    samples: int | None = None,
    pipeline: Any = None,
    **settings: Any,
) -> InterventionSummary:
    """Generate test samples again with activations edited towards target maps, and score them.

    Args:
        run: a finished run that generated images.
        prop: property to edit, such as ``foreground``.
        shift: shift (dx, dy) as fractions of width and height, or several; by default (0.2, 0).
        samples: number of test samples to edit, by default 8.
        pipeline: the pipeline object of the run, if `run_study` was given one.
        settings: further fields of `ldmprobe_core.interventions.spec.Intervention`, such as
            ``targets``, ``layers``, ``steps`` and ``confidence``.

    Returns:
        the effects of the edit and of its null edits, which the run and its report show too.

    Raises:
        UserError: a setting is wrong or has no effect, or the run lacks the probes or samples.

    Example::

        lp.intervene(run, "foreground", shift=(0.2, 0.0), samples=8).effects["edited"].mean
    """
    from ldmprobe_core.interventions.measures.summarize import summarise_intervention
    from ldmprobe_core.interventions.spec import parse_intervention
    from ldmprobe_core.interventions.stages import create_intervention, edit_batch, edit_units
    from ldmprobe_core.pipeline.model_cache import use_pipeline

    _require_runs("run", run)
    content = {"prop": prop, **settings} | ({} if samples is None else {"samples": samples})
    if shift is not None and "targets" in settings:
        raise UserError(f"shift: given together with targets ({shift}). Fix: leave out one.")
    if shift is not None:
        try:
            pairs = np.asarray(shift, dtype=float).reshape(-1, 2).tolist()
        except (TypeError, ValueError):
            raise UserError(
                f"shift: not pairs of numbers ({shift!r:.60}). Fix: give (dx, dy), or a list of "
                "such pairs"
            ) from None
        content["targets"] = tuple({"dx": dx, "dy": dy} for dx, dy in pairs)
    started = time.monotonic()
    with (
        reading(f"lp.intervene (process {os.getpid()})", run.url),
        use_pipeline(run.study, pipeline),
    ):
        name = create_intervention(run, parse_intervention(content))
        for unit in edit_units(run, name):
            edit_batch(run.url, name, *unit)
    return summarise_intervention(run, name, time.monotonic() - started)


def compare(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    """Compare the scores of several finished runs with those of the first run in the list.

    The difference between two runs is the mean over the test samples that both runs contain.

    Returns:
        one row for each property and run.  It gives the score at the last step, the difference from
        the first run with its confidence interval, and the steps from which the score keeps 50%
        (onset) and 90% (settled) of its gain.  ``differs in`` lists the settings of the study in
        which the run differs from the first one, such as ``sampling.steps``.

    Raises:
        UserError: there are fewer than two runs, or one of them is not finished or is no run.

    Example::

        lp.compare([lp.open_run("runs/a"), lp.open_run("runs/b")])
    """
    from ldmprobe_core.analysis import compare as comparison

    if not isinstance(runs, Sequence) or isinstance(runs, str):
        raise UserError(
            f"runs: {runs!r:.80} is not a list ({type(runs).__name__}). Fix: give a list of two or "
            "more opened runs"
        )
    _require_runs("runs", *runs)
    with reading(f"lp.compare (process {os.getpid()})", *(run.url for run in runs)):
        return comparison.compare(list(runs))


def write_report(run: StoredRun) -> str:
    """Write the summary and report of a finished run again, from its stored scores.

    Returns:
        path or URL of the report's page ``report/index.html``.

    Raises:
        UserError: the run is not finished.

    Example::

        lp.write_report(run)
    """
    from ldmprobe_core.analysis.report.build import rebuild_report

    _require_runs("run", run)
    with reading(f"lp.write_report (process {os.getpid()})", run.url):
        rebuild_report(run)
    return f"{run.url}/report/index.html"


def _require_study(study: Any) -> None:
    """Raise `UserError` for anything but a study, such as the name of one."""
    if not isinstance(study, Study):
        raise UserError(
            f"study: {study!r:.60} is no study ({type(study).__name__}). Fix: load it with "
            "lp.load_study"
        )


def _require_runs(argument: str, *runs: Any) -> None:
    """Raise `UserError` for anything but runs, such as the address of one, in an argument."""
    for run in runs:
        if not isinstance(run, StoredRun):
            raise UserError(
                f"{argument}: {run!r:.80} is no run ({type(run).__name__}). Fix: open it with "
                "lp.open_run"
            )
