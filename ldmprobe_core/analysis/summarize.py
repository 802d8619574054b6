"""Summary of a finished run: best probes, intervals of their scores, controls, emergence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmprobe_core.analysis.classes.curves import class_curves
from ldmprobe_core.analysis.controls.exact_maps import exact_record
from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.generalization.resplits import ResplitCurves
from ldmprobe_core.analysis.joint.class_maps import class_map_records
from ldmprobe_core.analysis.joint.vectors import vector_records
from ldmprobe_core.analysis.nonfinite import count_nonfinite
from ldmprobe_core.analysis.numbers import number_records
from ldmprobe_core.analysis.parts.run_parts import RunParts, one_thread
from ldmprobe_core.analysis.parts.sharing import compute_parts
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.analysis.records import PeakRecord, PropertyRecord, Summary
from ldmprobe_core.analysis.run_analysis import RunAnalysis, current_fields, test_bootstrap
from ldmprobe_core.analysis.stored_probes import stored_probes
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.storage.nodes import require_log_snr
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.splits import SPLITS

if TYPE_CHECKING:
    from ldmprobe_core.analysis.report.drawing.second_process import SecondProcess


def summarise(
    run: Run,
    seconds: dict[str, float],
    labels: LabelSet | None = None,
    memory: dict[str, PeakRecord] | None = None,
    second: SecondProcess | None = None,
) -> RunAnalysis:
    """Summarise all scores of a finished run.

    The best cells are chosen on validation samples, and their scores are given on test samples.

    Args:
        run: finished run.
        seconds: wall time by stage, which the summary reports.
        labels: label maps and splits of the run; None reads them.
        memory: planned and measured peaks of memory, which the summary reports.
        second: a second process, which computes a part; None computes all in this one.  The
            numbers are the same.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.progress.require_complete("probed")
    with one_thread(run.study):
        return _summarise(run, seconds, labels or label_set(run), memory, second)


def _summarise(
    run: Run,
    seconds: dict[str, float],
    labels: LabelSet,
    memory: dict[str, PeakRecord] | None,
    second: SecondProcess | None,
) -> RunAnalysis:
    """Do the work of `summarise`, which describes the arguments."""
    study, samples, attributes = run.study, run.samples, run.attributes
    steps = run.open("progress").sizes["step"]
    require_log_snr(run.url, attributes, steps)
    bootstrap, is_test = test_bootstrap(run, labels)
    properties, curves = _analyse_properties(run, labels, is_test, bootstrap, second)
    nonfinite, nonfinite_cells = count_nonfinite(run)
    summary = Summary(
        study=study.name,
        study_hash=study.hash,
        model_fingerprint=attributes["model_fingerprint"],
        samples=_count_samples(samples) | {"test_groups": bootstrap.groups},
        steps=steps,
        log_snr=attributes.get("log_snr", []),
        layers=len(run.layers),
        properties=properties,
        vectors=vector_records(run, labels, is_test, bootstrap),
        class_maps=class_map_records(run, labels, is_test, bootstrap),
        numbers=number_records(run, bootstrap),
        classes=class_curves(run) if study.labels.classes else None,
        labelers=_labeler_scores(properties),
        nonfinite=nonfinite["trained"],
        nonfinite_permuted=nonfinite.get("permuted"),
        nonfinite_cells=nonfinite_cells,
        versions=attributes["versions"],
        **current_fields(run, seconds, memory),
    )
    return RunAnalysis(summary, curves, bootstrap, labels.heldout[is_test], labels)


def _analyse_properties(
    run: Run,
    labels: LabelSet,
    is_test: np.ndarray,
    bootstrap: Bootstrap,
    second: SecondProcess | None,
) -> tuple[dict[str, PropertyRecord], dict[str, Curves]]:
    """Build the summary record and the score curves of every property.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.
        second: as in `summarise`.
    """
    test, parts = labels.heldout[is_test], RunParts(run, labels, is_test, bootstrap)
    # Two processes start at the two ends, so the small parts are in the middle.
    jobs: list[dict[str, Any]] = [
        *({"kind": "rivals", "name": p, "source": s} for p in parts.scores for s in SOURCES),
        *({"kind": "resplits", "name": name} for name in parts.resplits.layers),
        *({"kind": "property", "name": prop} for prop in parts.scores),
    ]
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for job, result in zip(jobs, compute_parts(run, jobs, parts.compute, second), strict=True):
        if job["kind"] == "rivals":
            result = found["rivals"].get(job["name"], {}) | result
        found[job["kind"]][job["name"]] = result
    resplits = parts.resplits.curves(found["resplits"])
    properties, curves = {}, {}
    for prop, scores in parts.scores.items():
        truth = labels.maps[prop][test] if scores.prop.is_mask else None
        part, rivals = found["property"][prop], found["rivals"][prop]
        curves[prop] = _curves(run, scores, part.position, rivals, test, resplits.get(prop))
        properties[prop] = scores.to_record(
            part.position, part.without_cells, curves[prop], truth, part.missing, part.ceilings,
            part.corrected,
        )  # fmt: skip
        properties[prop].undefined.constant = labels.constant(prop)
        best = properties[prop].best
        probe = stored_probes(run, best.layer, best.kind, prop)[best.step - 1]
        cell = best.step, best.layer, probe
        properties[prop].exact = exact_record(run, labels, prop, cell, test, bootstrap)
    varied = {p: one for p, one in properties.items() if one.undefined.constant is None}
    jobs = _analyses_jobs(varied)
    for records in compute_parts(run, jobs, parts.compute, second):
        for prop, record in records.items():
            properties[prop].analyses = record
    return properties, curves


def _analyses_jobs(properties: dict[str, PropertyRecord]) -> list[dict[str, Any]]:
    """List the generalization analyses as parts, one for each layer of a score curve."""
    layers = dict.fromkeys(record.layer.name for record in properties.values())
    return [
        {
            "kind": "analyses",
            "name": layer,
            "cells": [
                {
                    "prop": prop,
                    "kind": record.layer.kind,
                    "onset": record.emergence.probe.relative.onset.step,
                }
                for prop, record in properties.items()
                if record.layer.name == layer
            ],
        }
        for layer in layers
    ]


def _curves(
    run: Run,
    scores: PropertyScores,
    position: np.ndarray,
    rivals: dict[str, np.ndarray],
    test: np.ndarray,
    resplits: ResplitCurves | None,
) -> Curves:
    """Collect the score curves of a property.

    Args:
        run: finished run.
        scores: scores of the property in all cells.
        position: scores of the position baseline, (metric, test sample).
        rivals: scores of the property's labeler on step images, as `rival_scores` returns them, of
            all sources.
        test: indices of the test samples, (test sample,).
        resplits: score curves of re-splits; None without them.
    """
    decoded = np.isin(test, samples_in(run, STEP_IMAGES))
    steps = run.read(STEP_IMAGES, "step")
    curves = scores.curves(position[0], rivals, decoded, steps, resplits)
    curves = replace(curves, labeled=run.study.labels.is_labeled(scores.prop.name))
    kind, partial = scores.kinds.index(curves.kind), scores.prop.partial_metric
    others = {
        name: scores.scores[i, kind, 0]
        for i, name in enumerate(scores.conditions)
        if name in scores.controls
    }
    cells = {n: mean_of_defined(rows[..., scores.is_test]) for n, rows in others.items()}
    if partial is None:
        return replace(curves, other_cells=cells)
    of_partial = scores.scores[0, kind, scores.prop.metrics.index(partial)][..., scores.is_test]
    return replace(curves, other_cells=cells, partial_cells=mean_of_defined(of_partial))


def _count_samples(samples: list[Sample]) -> dict[str, int]:
    """Count samples in total and in each split."""
    counts = {split: sum(sample.split == split for sample in samples) for split in SPLITS}
    return {"total": len(samples)} | counts


def _labeler_scores(properties: dict[str, PropertyRecord]) -> dict[str, Interval] | None:
    """Return the labelers' scores on ground-truth maps by property; None without such maps."""
    scores = {
        name: record.exact.labeler
        for name, record in properties.items()
        if record.exact is not None and record.exact.labeler is not None
    }
    return scores or None
