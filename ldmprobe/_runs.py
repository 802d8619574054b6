"""Functions on studies and runs: plan, run in this process, open, intervene, compare, report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.run import Run as StoredRun
from ldmprobe_core.study import loading
from ldmprobe_core.study.schema import Study

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.interventions.results import InterventionSummary
    from ldmprobe_core.pipeline.planning.plan import StudyPlan
    from ldmprobe_core.probing.linear import LinearProbe


class Run(StoredRun):
    """Handle of a run, that is, of a study's results in a folder or a bucket.

    Reading it imports neither torch nor diffusers.

    Example::

        run = lp.open_run("runs/tabletop-d405ac198a")
        run.scores("depth").sel(condition="probe", metric="spearman").mean("sample")
    """

    @property
    def summary(self) -> Summary:
        """Contents of ``summary.json`` as typed records.

        Raises:
            UserError: the run is not finished.
        """
        from ldmprobe_core.analysis.records import load_summary

        return load_summary(self)

    def scores(self, prop: str) -> xr.DataArray:
        """Scores of every probe and control on the held-out samples.

        Args:
            prop: a property of the study, such as ``depth``.

        Returns:
            (condition, kind, metric, step, layer, sample) float32, lazily loaded; NaN if undefined
            or not computed.  The coordinate ``split`` is "validation" or "test" for each sample.

        Raises:
            UserError: the study does not probe the property.
        """
        self._require_property(prop)
        return self.open(f"scores/{prop}", bool(self.progress.completed("probed").all())).score

    def probe(self, prop: str, step: int, layer: str, kind: str | None = None) -> LinearProbe:
        """Read a fitted linear probe.

        Args:
            prop: property that the probe predicts.
            step: sampler step, from 1.
            layer: one of `layers`.
            kind: one of ``probes.kinds``; None takes the first that was fitted to the property.

        Returns:
            weight (channel,) float64, bias, and ``predict(activations)`` for (n, y, x, channel).

        Raises:
            UserError: the run has no such step, layer or kind, or no finite probe of it.
        """
        from ldmprobe_core.probing.linear import LinearProbe

        self._require_property(prop)
        if layer not in self.probe_inputs:
            raise UserError(
                f"layer: {layer!r} is not in the run. Fix: take one of "
                f"{', '.join(self.probe_inputs)}"
            )
        group = self.open(f"probes/{layer}", require_complete=False)
        if step not in group.step.values:
            raise UserError(f"step: {step} is not in the run. Fix: take 1 to {len(group.step)}")
        if self.progress.is_done("probed", step - 1, self.probe_inputs.index(layer)):
            group = self.open(f"probes/{layer}")  # a missing chunk of it is an error
        kinds = [str(name) for name in group.kind.values]
        if kind is not None and kind not in kinds:
            raise UserError(f"kind: {kind!r} is not in the run. Fix: take {', '.join(kinds)}")
        for name in [kind] if kind else kinds:
            fitted = group.sel(property=prop, step=step, kind=name).load()
            weight = fitted.weight.values.astype(np.float64)
            if np.isfinite(weight).all():
                return LinearProbe(weight, float(fitted.bias), float(fitted.penalty))
        raise UserError(
            f"kind: no linear probe of {prop} at step {step} of {layer} ({kind or 'any kind'}). "
            "Fix: take another kind, or finish the run"
        )

    def activations(self, layer: str) -> xr.DataArray:
        """Activations of a layer, (sample, step, y, x, channel) float16, lazily loaded.

        Raises:
            UserError: the layer is not in the run.
        """
        if layer not in self.probe_inputs:
            raise UserError(
                f"layer: {layer!r} is not in the run. Fix: take one of "
                f"{', '.join(self.probe_inputs)}"
            )
        generated = bool(self.progress.completed("generated").all())
        return self.open(f"activations/{layer}", generated).activation

    def _require_property(self, prop: str) -> None:
        if prop not in self.study.labels.maps:
            raise UserError(
                f"property: {prop!r} is not probed by the study. Fix: take one of "
                f"{', '.join(self.study.labels.maps)}"
            )


def load_study(source: str, overrides: Mapping[str, Any] | Sequence[str] | None = None) -> Study:
    """Load a study from a YAML file.

    Args:
        source: path of a YAML file, or the name of an included study such as ``tabletop``.
        overrides: values by dotted key, such as ``{"sampling.steps": 20}``; or ``key=value``
            strings.

    Raises:
        UserError: the file does not exist, or a key or value is not valid in a study.

    Example::

        study = lp.load_study("tabletop", {"prompts.samples": 48, "sampling.steps": 8})
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return loading.load_study(source, list(overrides or ()))


def plan(study: Study) -> StudyPlan:
    """Check a study and compute its sizes, without loading weights.

    Returns:
        layers and their shapes, steps, bytes, memory, and packages and weights that are missing on
        this machine; printable.

    Raises:
        UserError: a setting of the study is wrong.

    Example::

        print(lp.plan(lp.load_study("tabletop")))
    """
    from ldmprobe_core.pipeline.planning.plan import plan_study

    return plan_study(study)


def open_run(url: str) -> Run:
    """Open a run for reading.

    Args:
        url: folder or ``s3://bucket/prefix`` of the run.

    Raises:
        UserError: there is no run, or another release wrote it.

    Example::

        run = lp.open_run("runs/tabletop-d405ac198a")
    """
    run = Run(url)
    run.location.require_reachable()
    run.study  # noqa: B018  (raises if there is no run)
    return run


def run_study(study: Study, store: str = "runs", progress: bool = True) -> Run:
    """Run a study in this process, without a server; resume it if it was interrupted.

    It also works in a notebook.  For many workers, schedules and a UI use the command ``ldmprobe
    run``, which writes the same bytes.

    Args:
        study: the study to run.
        store: folder or ``s3://bucket/prefix`` that contains runs.
        progress: whether to show a progress bar.

    Returns:
        the finished run, with its report.

    Raises:
        UserError: a setting of the study is wrong, or another process is working on the run.

    Example::

        run = lp.run_study(lp.load_study("tabletop", {"prompts.samples": 48}), "runs")
    """
    from ldmprobe_core.analysis.report.build import build_report
    from ldmprobe_core.pipeline.planning.plan import check_store, plan_study
    from ldmprobe_core.pipeline.prepare import check_origin, prepare_run, run_in
    from ldmprobe_core.storage.lease import hold_lease

    planned = plan_study(study)
    planned.require_complete()
    target = run_in(store, planned.study)
    target.location.require_reachable()
    if target.location.has("summary.json"):
        check_origin(target, planned.study)
        return Run(target.url)
    check_store(planned, target)
    with planned.in_use(), hold_lease(target.url, f"run_study (process {os.getpid()})"):
        run = Run(prepare_run(planned.study, store).url)
        seconds = _carry_out(run, progress)
        build_report(run, seconds)
    return run


def _carry_out(run: Run, progress: bool) -> dict[str, float]:
    """Carry out all unfinished units of work; returns the seconds spent by verb."""
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
    shift: tuple[float, float] | Sequence[tuple[float, float]] | None = (0.2, 0.0),
    samples: int = 8,
    **settings: Any,
) -> InterventionSummary:
    """Edit activations towards target maps, finish denoising, and score the images.

    Args:
        run: a finished run that generated images.
        prop: property to edit.
        shift: (dx, dy) as fractions of width and height, or a sequence of them; None with
            ``targets``.
        samples: number of test samples to edit.
        settings: further fields of `ldmprobe_core.interventions.spec.Intervention`, such as
            ``targets``, ``layers``, ``steps``, ``confidence``.

    Returns:
        effects by edit condition, with intervals; also stored in the run and shown in its report.

    Raises:
        UserError: a setting is wrong, or the run lacks probes or samples that it needs.

    Example::

        lp.intervene(run, "foreground", shift=(0.2, 0.0), samples=8).effects["edited"].mean
    """
    from ldmprobe_core.interventions.results import summarise_intervention
    from ldmprobe_core.interventions.spec import parse_intervention
    from ldmprobe_core.interventions.stages import create_intervention, edit_batch, edit_units

    content: dict[str, Any] = {"prop": prop, "samples": samples, **settings}
    if "targets" not in settings and shift is not None:
        pairs = np.asarray(shift, dtype=float).reshape(-1, 2).tolist()
        content["targets"] = tuple({"dx": dx, "dy": dy} for dx, dy in pairs)
    started = time.monotonic()
    name = create_intervention(run, parse_intervention(content))
    for target, batch in edit_units(run, name):
        edit_batch(run.url, name, target, batch)
    return summarise_intervention(run, name, time.monotonic() - started)


def compare(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    """Compare finished runs with the first of them, paired over the samples they share.

    Returns:
        one row per property and run: score at the last step, difference to the first run with its
        interval, onset and settled steps.

    Raises:
        UserError: there are fewer than two runs, or one is not finished.

    Example::

        lp.compare([lp.open_run("runs/a"), lp.open_run("runs/b")])
    """
    from ldmprobe_core.analysis import compare as comparison

    return comparison.compare(list(runs))


def write_report(run: StoredRun) -> str:
    """Rebuild the report of a finished run from its stored scores.

    Returns:
        path or URL of ``report/index.html``.

    Raises:
        UserError: the run is not finished.

    Example::

        lp.write_report(run)
    """
    from ldmprobe_core.analysis.report.build import rebuild_report

    rebuild_report(run)
    return f"{run.url}/report/index.html"
