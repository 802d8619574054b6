"""Functions of the public API for studies and their stored runs.

They load, plan and run a study in this process, open its run, intervene on it, compare it with
others, and write its report.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.run import Run as StoredRun
from ldmprobe_core.study import loading
from ldmprobe_core.study.layers import CLEAN_PIXELS
from ldmprobe_core.study.schema import Study

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.interventions.results import InterventionSummary
    from ldmprobe_core.pipeline.planning.plan import StudyPlan
    from ldmprobe_core.probing.linear import LinearProbe


class Run(StoredRun):
    """Handle of a run: the folder or S3 prefix that holds the results of a study.

    Opening and reading a run imports neither torch nor diffusers.

    Example::

        run = lp.open_run("runs/tabletop-d405ac198a")
        run.scores("depth").sel(condition="probe", metric="spearman").mean("sample")
    """

    @property
    def summary(self) -> Summary:
        """Main results of the run, which are stored in its file ``summary.json``.

        Raises:
            UserError: the run is not finished.
        """
        from ldmprobe_core.analysis.records import load_summary

        return load_summary(self)

    def scores(self, prop: str) -> xr.DataArray:
        """Return the scores of every probe and control on the validation and test samples.

        Args:
            prop: property that the study probes, such as ``depth``.

        Returns:
            scores (condition, kind, metric, step, layer, sample) float32, which are read from the
            store when they are used.  A score is NaN if it is undefined or not computed yet; a
            score that was computed and is lost raises a `CorruptChunkError` when it is read.  The
            coordinate ``split`` is "validation" or "test" for each sample.

        Raises:
            UserError: the study does not probe the property.
        """
        self._require_property(prop)
        # The dimensions of scores are (condition, kind, metric, step, layer, sample).  One unit of
        # probing writes the scores of one step and one layer, so the indices at positions 3 and 4
        # of a chunk's key identify its unit.
        required = self._required_chunks(f"scores/{prop}/score", "probed", 3, 4)
        return self.open(f"scores/{prop}", required).score

    def probe(self, prop: str, step: int, layer: str, kind: str | None = None) -> LinearProbe:
        """Read the linear probe that was fitted at one step of one layer.

        Args:
            prop: property that the probe predicts.
            step: denoising step, counted from 1.
            layer: name of the layer.
            kind: one of the study's ``probes.kinds``; None uses the first kind that was fitted to
                the property.

        Returns:
            the probe, with ``weight`` (channel,) float64, ``bias``, ``position`` (y, x), and the
            method ``predict`` for activations (n, y, x, channel); for latents, for the result of
            `ldmprobe_core.probing.neighbourhood.probe_features`.  Where the prediction of a mask
            exceeds ``cut``, it counts as foreground.

        Raises:
            UserError: the step, the layer or the kind is not in the run, or no such probe was
                fitted.
        """
        from ldmprobe_core.probing.linear import LinearProbe

        self._require_property(prop)
        if layer not in self.probe_inputs:
            raise UserError(
                f"layer: {layer!r} is not in the run. Fix: choose one of "
                f"{', '.join(self.probe_inputs)}"
            )
        group = self.open(f"probes/{layer}", require_complete=False)
        if step not in group.step.values:
            raise UserError(
                f"step: {step} is not in the run. Fix: choose a step from 1 to {len(group.step)}"
            )
        if self.progress.is_done("probed", step - 1, self.probe_inputs.index(layer)):
            # The unit that fits this probe is complete, so all its chunks must exist.  This call
            # reopens the group in the mode that raises an error for a missing chunk.
            group = self.open(f"probes/{layer}")
        kinds = [str(name) for name in group.kind.values]
        if kind is not None and kind not in kinds:
            raise UserError(
                f"kind: {kind!r} is not in the run. Fix: choose one of {', '.join(kinds)}"
            )
        for name in [kind] if kind else kinds:
            fitted = group.sel(property=prop, step=step, kind=name).load()
            if np.isfinite(fitted.weight.values).all():
                return LinearProbe.from_dataset(fitted)
        raise UserError(
            f"kind: the run holds no linear probe of {prop} at step {step} of {layer} (kind: "
            f"{kind or 'any'}). Fix: choose another kind, or resume the run until it is finished"
        )

    def activations(self, layer: str) -> xr.DataArray:
        """Return the stored activations of a layer; they are read when their values are used.

        Args:
            layer: name of the layer.

        Returns:
            activations (sample, step, y, x, channel) float16; NaN if they are not generated yet.
            Those of ``clean_pixels`` are of the samples and steps with step images.  Lost ones
            raise a `CorruptChunkError` when they are read.

        Raises:
            UserError: the layer is not in the run.
        """
        if layer not in self.probe_inputs:
            raise UserError(
                f"layer: {layer!r} is not in the run. Fix: choose one of "
                f"{', '.join(self.probe_inputs)}"
            )
        group, array = f"activations/{layer}", f"activations/{layer}/activation"
        # A chunk holds a batch of samples, or one sample of those with step images.
        batch = self.study.sampling.batch
        chunks = self.read(group, "sample")[:: 1 if layer == CLEAN_PIXELS else batch]
        done = self.progress.completed("generated")[chunks // batch]
        return self.open(group, _required(array, done, 0)).activation

    def _required_chunks(self, array: str, kind: str, *dims: int) -> Callable[[str], bool]:
        """Return a predicate on a chunk's key: whether the chunk must exist in an undamaged run.

        A chunk of the array must exist if the unit that writes it is complete.

        Args:
            array: path of the array that the units write; every chunk of other arrays must exist.
            kind: name of the units' array in the group ``progress``.
            dims: positions, in the number of a chunk, of the dimensions that number the units.
        """
        return _required(array, self.progress.completed(kind), *dims)

    def _require_property(self, prop: str) -> None:
        if prop not in self.study.labels.maps:
            raise UserError(
                f"property: {prop!r} is not probed by the study. Fix: choose one of "
                f"{', '.join(self.study.labels.maps)}"
            )


def _required(array: str, done: np.ndarray, *dims: int) -> Callable[[str], bool]:
    """Return a predicate on a chunk's key: whether the chunk must exist in an undamaged run.

    Args:
        array: path of an array; every chunk of other arrays must exist.
        done: whether the unit that writes a chunk is complete, by the chunk's number along `dims`.
        dims: positions of these dimensions in the number of a chunk.
    """

    def required(key: str) -> bool:
        if not key.startswith(f"{array}/c/"):
            return True
        number = key.rpartition("/c/")[2].split("/")
        return bool(done[tuple(int(number[dim]) for dim in dims)])

    return required


def load_study(source: str, overrides: Mapping[str, Any] | Sequence[str] | None = None) -> Study:
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
        overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return loading.load_study(source, list(overrides or ()))


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

    with use_pipeline(study, pipeline) as used:
        return plan_study(used)


def open_run(url: str) -> Run:
    """Open a stored run by its folder or S3 address, for reading.

    Args:
        url: folder or ``s3://bucket/prefix`` of the run.

    Raises:
        UserError: there is no run at this address, or it has another release's format.

    Example::

        run = lp.open_run("runs/tabletop-d405ac198a")
    """
    run = Run(url)
    run.location.require_reachable()
    # Reading the study raises `UserError` if there is no run at this address.
    run.study  # noqa: B018
    return run


def run_study(
    study: Study, store: str = "runs", progress: bool = True, pipeline: Any = None
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

    # A malformed store address is refused here, before time is spent on planning the study.
    Location(store)
    with use_pipeline(study, pipeline) as used:
        return _run_study(used, store, progress)


def _run_study(study: Study, store: str, progress: bool) -> Run:
    """Run a study, or resume it; see `run_study`."""
    from ldmprobe_core.analysis.report.build import build_report
    from ldmprobe_core.pipeline.planning.plan import check_store, plan_study
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
    with planned.in_use(), hold_lease(target.url, f"run_study (process {os.getpid()})"):
        run = Run(prepare_run(planned.study, store).url)
        seconds = _carry_out(run, progress)
        build_report(run, seconds)
    return run


def _carry_out(run: Run, progress: bool) -> dict[str, float]:
    """Carry out a run's unfinished units; return the seconds that each kind of unit took."""
    from rich.progress import Progress, TimeRemainingColumn

    from ldmprobe_core.pipeline.units import UNITS

    seconds: dict[str, float] = {}
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
                    operations.carry_out(run.url, *unit.index)
            seconds[verb] = time.monotonic() - started
    return seconds


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
    from ldmprobe_core.interventions.results import summarise_intervention
    from ldmprobe_core.interventions.spec import parse_intervention
    from ldmprobe_core.interventions.stages import create_intervention, edit_batch, edit_units
    from ldmprobe_core.pipeline.model_cache import use_pipeline

    content = {"prop": prop, **settings} | ({} if samples is None else {"samples": samples})
    if shift is not None and "targets" in settings:
        raise UserError(f"shift: targets are given too ({shift}). Fix: leave out one of the two.")
    if shift is not None:
        pairs = np.asarray(shift, dtype=float).reshape(-1, 2).tolist()
        content["targets"] = tuple({"dx": dx, "dy": dy} for dx, dy in pairs)
    started = time.monotonic()
    with use_pipeline(run.study, pipeline):
        name = create_intervention(run, parse_intervention(content))
        for unit in edit_units(run, name):
            edit_batch(run.url, name, *unit)
    return summarise_intervention(run, name, time.monotonic() - started)


def compare(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    """Compare finished runs with the first of them.

    The difference between two runs is the mean over the test samples that both runs contain.

    Returns:
        one row for each property and run.  It gives the score at the last step, the difference from
        the first run with its confidence interval, and the steps from which the score keeps 50%
        (onset) and 90% (settled) of its gain.  ``differs in`` lists the settings of the study in
        which the run differs from the first one, such as ``sampling.steps``.

    Raises:
        UserError: there are fewer than two runs, or one of them is not finished.

    Example::

        lp.compare([lp.open_run("runs/a"), lp.open_run("runs/b")])
    """
    from ldmprobe_core.analysis import compare as comparison

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

    rebuild_report(run)
    return f"{run.url}/report/index.html"
