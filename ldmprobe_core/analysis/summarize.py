"""Summary of a finished run: best probes, intervals of their scores, controls, emergence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ldmprobe_core.analysis.classes.curves import class_curves
from ldmprobe_core.analysis.controls.ceilings import block_ceilings
from ldmprobe_core.analysis.controls.exact_maps import exact_record
from ldmprobe_core.analysis.controls.prompt_control import prompt_scores
from ldmprobe_core.analysis.controls.rivals import rival_scores
from ldmprobe_core.analysis.controls.same_prompt import read_same_prompt_scores
from ldmprobe_core.analysis.controls.training_size import (
    CorrectedDifference,
    corrected_difference,
    scores_of_halves,
    training_halves,
)
from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.generalization.build import PropertyAnalyses, add_analyses
from ldmprobe_core.analysis.generalization.resplits import ResplitCurves, resplit_curves
from ldmprobe_core.analysis.joint.class_maps import class_map_records
from ldmprobe_core.analysis.joint.vectors import vector_records
from ldmprobe_core.analysis.nonfinite import count_nonfinite
from ldmprobe_core.analysis.numbers import number_records
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.analysis.records import PeakRecord, PropertyRecord, Summary
from ldmprobe_core.analysis.run_analysis import RunAnalysis, current_fields, test_bootstrap
from ldmprobe_core.analysis.stored_probes import stored_probes
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import missing_share
from ldmprobe_core.probing.metrics import mean_of_defined, score_maps
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.splits import SPLITS

PART_BYTES = 128 << 20
"""Largest number of bytes of the float64 maps that `position_scores` scores at once."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch and BLAS to one CPU thread inside a ``with`` block.

    The matrices are small.  With several threads, BLAS and torch would spend most of the time on
    waiting for each other, up to 20 times as much as on computing on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def summarise(
    run: Run,
    seconds: dict[str, float],
    labels: LabelSet | None = None,
    memory: dict[str, PeakRecord] | None = None,
) -> RunAnalysis:
    """Summarise all scores of a finished run.

    The best cells are chosen on validation samples, and their scores are given on test samples.

    Args:
        run: finished run.
        seconds: wall time by stage, which the summary reports.
        labels: label maps and splits of the run; None reads them.
        memory: planned and measured peaks of memory, which the summary reports.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.progress.require_complete("probed")
    study, samples = run.study, run.samples
    labels = labels or label_set(run)
    bootstrap, is_test = test_bootstrap(run, labels)
    properties, curves = _analyse_properties(run, labels, is_test, bootstrap)
    attributes = run.attributes
    nonfinite, nonfinite_cells = count_nonfinite(run)
    summary = Summary(
        study=study.name,
        study_hash=study.hash,
        model_fingerprint=attributes["model_fingerprint"],
        samples=_count_samples(samples) | {"test_groups": bootstrap.groups},
        steps=run.open("progress").sizes["step"],
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
        notes=tuple(attributes.get("notes", ())),
        **current_fields(run, seconds, memory),
    )
    return RunAnalysis(summary, curves, bootstrap, labels.heldout[is_test], labels)


def _analyse_properties(
    run: Run, labels: LabelSet, is_test: np.ndarray, bootstrap: Bootstrap
) -> tuple[dict[str, PropertyRecord], dict[str, Curves]]:
    """Build the summary record and the score curves of every property.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.
    """
    study, test = run.study, labels.heldout[is_test]
    shapes = [run.open(f"activations/{layer}").sizes for layer in run.layers]
    grids = [(sizes["y"], sizes["x"]) for sizes in shapes]
    of_property = {
        prop: PropertyScores.read(run, prop, labels.heldout, is_test, bootstrap)
        for prop in study.labels.maps
    }
    candidates = {prop: scores.tied_layers for prop, scores in of_property.items()}
    resplits = resplit_curves(run, labels, candidates, test)
    properties, curves, analyses = {}, {}, {}
    for prop, scores in of_property.items():
        truth = labels.maps[prop][test]
        position = position_scores(prop, labels, test)
        curves[prop] = _curves(run, scores, position[0], labels, test, resplits.get(prop))
        properties[prop] = scores.to_record(
            position,
            _scores_without_cells(run, scores, labels, is_test),
            curves[prop],
            truth,
            missing_share(labels.maps[prop]),
            block_ceilings(labels, prop, grids, test),
            _corrected_differences(run, scores, labels, is_test),
        )
        best = properties[prop].best
        probe = stored_probes(run, best.layer, best.kind, prop)[best.step - 1]
        cell = best.step, best.layer, probe
        properties[prop].exact = exact_record(run, labels, prop, cell, test, bootstrap)
        analyses[prop] = PropertyAnalyses(run, labels, properties[prop], scores, bootstrap)
    add_analyses(run, properties, analyses)
    return properties, curves


def _curves(
    run: Run,
    scores: PropertyScores,
    position: np.ndarray,
    labels: LabelSet,
    test: np.ndarray,
    resplits: ResplitCurves | None,
) -> Curves:
    """Collect the score curves of a property, given the position baseline's scores ``position``."""
    rivals = rival_scores(run, scores.prop.name, labels, test, scores.scores.shape[3])
    decoded = np.isin(test, samples_in(run, STEP_IMAGES))
    steps = run.read(STEP_IMAGES, "step")
    curves = scores.curves(position, rivals, decoded, steps, resplits)
    kind, partial = scores.kinds.index(curves.kind), scores.prop.partial_metric
    others = {
        name: scores.scores[i, kind, 0]
        for i, name in enumerate(scores.conditions)
        if name in scores.controls
    }
    cells = {n: mean_of_defined(rows[..., scores.is_test]) for n, rows in others.items()}
    if partial is None:
        return replace(curves, other_cells=cells)
    of_partial = scores.scores[0, kind, scores.metrics.index(partial)][..., scores.is_test]
    return replace(curves, other_cells=cells, partial_cells=mean_of_defined(of_partial))


def _count_samples(samples: list[Sample]) -> dict[str, int]:
    """Count samples in total and in each split."""
    counts = {split: sum(sample.split == split for sample in samples) for split in SPLITS}
    return {"total": len(samples)} | counts


def position_scores(prop: str, labels: LabelSet, test: np.ndarray) -> np.ndarray:
    """Score the training mean map as the prediction of every test sample, (metric, test sample)."""
    maps, mean_map = labels.maps[prop], labels.means[prop]
    tuning = labels.train if len(labels.train) else labels.validation
    cut = position_cut(mean_map, maps[tuning]) if property_of(prop).is_mask else None
    # Score large maps in parts, because metrics hold several float64 copies of all of their pixels.
    at_once = max(1, PART_BYTES // (8 * mean_map.size))
    scores = [
        score_maps(prop, mean_map[None], maps[part], mean_map, cut=cut)
        for part in np.split(test, range(at_once, len(test), at_once))
    ]
    return np.concatenate(scores, axis=1)


def _scores_without_cells(
    run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray
) -> dict[str, np.ndarray]:
    """Score the controls that have no layer and step, (metric, test sample) by control name."""
    study, prop = run.study, scores.prop.name
    # Source images share one caption, so there are no prompts to predict from.
    if not study.controls.prompt or study.images is not None:
        return {}
    controls = {}
    # Without stored label maps of training samples (``capture.keep: statistics``), the prompt
    # control cannot be fitted.
    if len(labels.train) > 0 and run.has_prompt_embeddings:
        embedding = run.read("prompts", "embedding")
        controls["prompt"] = prompt_scores(embedding, labels, prop, study.probes.penalties)
        controls["prompt"] = controls["prompt"][:, is_test]
    kind, step, layer = scores.best()
    cell = scores.kinds[kind], step + 1, scores.layers[layer]
    of_others = read_same_prompt_scores(run, prop, labels, labels.heldout[is_test], cell)
    return controls if of_others is None else controls | {"same_prompt": of_others}


def _corrected_differences(
    run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray
) -> dict[str, CorrectedDifference]:
    """Correct the score differences to the controls for small training sets, by control name.

    Differences to input controls are corrected by refits to halves of the training samples.  For a
    control of a part of the samples, the probe is fitted again to that part, so that both sides of
    the difference have the same samples.  Controls for which neither is possible, because the run
    does not store the activations of training samples or they have few prompts, are left out.
    """
    permuted = [name for name in scores.controls if name in scores.covered]
    refitted = {
        name: _corrected_difference(run, scores, labels, is_test, name)
        for name in (*scores.inputs, *permuted)
    }
    return {name: result for name, result in refitted.items() if result is not None}


def _corrected_difference(
    run: Run, scores: PropertyScores, labels: LabelSet, is_test: np.ndarray, name: str
) -> CorrectedDifference | None:
    """Correct the score difference to one control; None without training samples to refit."""
    study, prop, covered = run.study, scores.prop.name, scores.covered.get(name)
    index = np.arange(run.n_stored)
    if covered is not None:
        index = covered.index[covered.index < run.n_stored]
    known = labels if covered is None else labels.subset(tuple(index.tolist()))
    prompts = np.array([run.samples[i].group for i in index])
    halves: list[np.ndarray] = []
    if name in scores.inputs:
        halves = training_halves(known.train, prompts, study.prompts.seed)
    fits = halves if covered is None else [known.train, *halves]
    if not (fits and len(known.train)):
        return None
    among = np.isin(labels.heldout[is_test], index)
    tested = np.isin(known.heldout, np.flatnonzero(np.isin(index, labels.heldout[is_test])))

    def refits(kind: int, step: int, layer: str, members: list[np.ndarray]) -> np.ndarray:
        group = f"activations/{layer}"
        rows, row = samples_in(run, group), np.flatnonzero(run.read(group, "step") == step + 1)[0]
        positions = np.searchsorted(rows, index)
        activations = run.read(group, "activation", step=int(row), sample=positions)
        features, probe = probe_features(layer, activations), (scores.kinds[kind], prop)
        return scores_of_halves(features, known, study, probe, members)[:, tested]

    kind, step, layer = scores.best()
    of_probe = refits(kind, step, scores.layers[layer], fits)
    if name in scores.inputs:
        kind, step = scores.best_of_input(name)
        of_control = scores.inputs[name][kind, 0, step, is_test]
    else:
        condition = scores.conditions.index(name)
        of_control = scores.of(scores.best(condition), condition)[0]
    whole = scores.of(scores.best())[0]
    if covered is not None:
        whole = np.full(len(among), np.nan)
        whole[among], of_probe = of_probe[0], of_probe[1:]
    difference = whole - of_control
    if not halves:
        return CorrectedDifference(difference, 0.0)
    of_parts = np.full((len(halves), len(among)), np.nan)
    of_parts[:, among] = of_probe - refits(kind, step, name, halves)
    return corrected_difference(difference, of_parts)


def _labeler_scores(properties: dict[str, PropertyRecord]) -> dict[str, Interval] | None:
    """Return the labelers' scores on ground-truth maps by property; None without such maps."""
    scores = {
        name: record.exact.labeler
        for name, record in properties.items()
        if record.exact is not None and record.exact.labeler is not None
    }
    return scores or None
