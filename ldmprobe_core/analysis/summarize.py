"""Summary of a finished run: best cells, intervals of their scores, controls and emergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.class_curves import class_curves
from ldmprobe_core.analysis.nonfinite import count_nonfinite
from ldmprobe_core.analysis.property_scores import Curves, PropertyScores
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import missing_share
from ldmprobe_core.probing.metrics import HeadlineScorer, score_maps
from ldmprobe_core.storage.run import SOURCES, Run
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.splits import SPLITS


@dataclass(frozen=True)
class RunAnalysis:
    """Results of a run: its summary, and the scores that the figures of its report show.

    Attributes:
        summary: contents of ``summary.json``.
        curves: scores over steps by property.
        bootstrap: resamples of the test prompts.
        test: indices of the test samples, (test sample,).
    """

    summary: Summary
    curves: dict[str, Curves]
    bootstrap: Bootstrap
    test: np.ndarray


def summarise(run: Run, seconds: dict[str, float]) -> RunAnalysis:
    """Summarise all scores of a finished run.

    The best cells are chosen on validation samples, and their scores are given on test samples.

    Args:
        run: finished run.
        seconds: wall time by stage, which the summary reports.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.progress.require_complete("probed")
    study, samples, labels = run.study, run.samples, label_set(run)
    is_test = np.array([samples[i].split == "test" for i in labels.heldout])
    test = labels.heldout[is_test]
    bootstrap = Bootstrap.of_samples(
        [samples[i] for i in test], study.bootstrap, study.prompts.seed
    )
    steps = run.open("progress").sizes["step"]
    properties, curves = {}, {}
    for prop in study.labels.maps:
        scores = PropertyScores(run, prop, labels.heldout, is_test, bootstrap)
        truth = labels.maps[prop][test]
        position = _position_scores(prop, labels, test)
        curves[prop] = scores.curves(
            position[0], _image_labeler_scores(run, prop, test, truth, steps)
        )
        missing = missing_share(labels.maps[prop])
        properties[prop] = scores.to_record(position, curves[prop], truth, missing)
    attributes = run.attributes
    nonfinite, nonfinite_cells = count_nonfinite(run)
    counts = {"total": len(samples)}
    for split in SPLITS:
        counts[split] = sum(sample.split == split for sample in samples)
    counts["test_groups"] = bootstrap.groups
    classes = None
    if study.labels.classes:
        classes = class_curves(run)
    summary = Summary(
        study=study.name,
        study_hash=study.hash,
        model_fingerprint=attributes["model_fingerprint"],
        samples=counts,
        steps=steps,
        layers=len(run.layers),
        properties=properties,
        classes=classes,
        labelers=_labeler_scores(run, test, labels, bootstrap),
        nonfinite=nonfinite["trained"],
        nonfinite_permuted=nonfinite.get("permuted"),
        nonfinite_cells=nonfinite_cells,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        bytes=run.location.size(),
        versions=attributes["versions"],
        notes=tuple(attributes.get("notes", ())),
    )
    return RunAnalysis(summary, curves, bootstrap, test)


def _position_scores(prop: str, labels: LabelSet, test: np.ndarray) -> np.ndarray:
    """Score the position baseline on the test samples, (metric, test sample)."""
    maps, mean_map = labels.maps[prop], labels.means[prop]
    tuning = labels.train if len(labels.train) else labels.validation
    predicted = np.broadcast_to(mean_map, (len(test), *mean_map.shape))
    cut = position_cut(mean_map, maps[tuning]) if property_of(prop).is_mask else None
    return score_maps(prop, predicted, maps[test], mean_map, cut=cut)


def _image_labeler_scores(
    run: Run, prop: str, test: np.ndarray, truth: np.ndarray, steps: int
) -> dict[str, np.ndarray]:
    """Score the labeler on the images of each step, (step, test sample) by source of the images."""
    headline = HeadlineScorer(prop, truth)
    return {
        source: np.stack(
            [_source_scores(run, source, prop, test, step, headline) for step in range(steps)]
        )
        for source in SOURCES
    }


def _source_scores(
    run: Run, source: str, prop: str, test: np.ndarray, step: int, headline: HeadlineScorer
) -> np.ndarray:
    """Score the labeler on the images of one step, (n,); NaN if these have no labels."""
    maps = run.read(f"labels_{source}", prop, sample=test, step=step)
    # All values are NaN if the study names no labeler for the property, because it takes exact
    # maps from files: these exist for final images only.
    if np.isnan(maps).all():
        return np.full(len(test), np.nan)
    return headline.score(as_label(run.study, prop, maps))


def _labeler_scores(
    run: Run, test: np.ndarray, labels: LabelSet, bootstrap: Bootstrap
) -> dict[str, Interval] | None:
    """Score the labelers against exact maps, by property; None if there are no exact maps."""
    study, labelers = run.study, labelers_of(run.study)
    compared = [p for p in run.exact_properties if p in study.labels.maps and p in labelers]
    intervals = {}
    for prop in compared:
        truth = as_label(study, prop, run.read("exact_maps", prop, sample=test))
        scores = score_maps(prop, labels.maps[prop][test], truth, labels.means[prop])[0]
        intervals[prop] = bootstrap.interval(scores)
    return intervals or None
