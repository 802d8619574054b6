"""Comparison of finished runs, based on the test samples that they share."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.analysis.records import Summary, load_summary
from ldmprobe_core.analysis.report.text import number, step
from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.conditions import PROBE_CONDITION
from ldmprobe_core.study.probe_sections import BootstrapSettings
from ldmprobe_core.study.samples import Sample

SampleKey = tuple[str, int, str | None, str | None]
"""Prompt, seed, file name of the source image, and hash of this image and its maps."""


def compare(runs: list[Run]) -> list[dict[str, str]]:
    """Build a table that compares runs with the first of them.

    The table has one row for each property and run, with the score at the last step, its difference
    to the first run's score, and the onset and settled steps.  The difference is a mean over the
    test samples that both runs contain (same prompt, seed and source image, by name and content),
    with a bootstrap interval over their prompts.  It is a dash if the runs share fewer than two of
    these samples.

    Raises:
        UserError: a run is not finished, fewer than two runs are given, or they have no property
            in common.
    """
    if len(runs) < 2:
        raise UserError(f"runs: too few to compare ({len(runs)}). Fix: give two or more.")
    summaries = [load_summary(run) for run in runs]
    common = [
        prop
        for prop in summaries[0].properties
        if all(prop in summary.properties for summary in summaries)
    ]
    if not common:
        names = ["/".join(summary.properties) for summary in summaries]
        raise UserError(
            f"runs: they have no property in common ({', '.join(names)}). Fix: compare runs that "
            "probe the same property."
        )
    rows = []
    for prop in common:
        first = _last_scores(runs[0], summaries[0], prop)
        for run, summary in zip(runs, summaries, strict=True):
            result = summary.properties[prop]
            gap, pairs = _difference(
                first, _last_scores(run, summary, prop), runs[0].study.bootstrap
            )
            rows.append(
                {
                    "property": prop,
                    "run": run.url.rpartition("/")[2],
                    "last step": number(result.last.score),
                    "difference": gap if run is not runs[0] else "",
                    "pairs": str(pairs) if run is not runs[0] else "",
                    "position": number(result.controls.position.same_cell),
                    "onset": step(result.emergence.probe.relative.onset),
                    "settled": step(result.emergence.probe.relative.settled),
                }
            )
    return rows


def _last_scores(run: Run, summary: Summary, prop: str) -> dict[SampleKey, tuple[float, Sample]]:
    """Read the test scores of the best probes at the last step, and the scored samples.

    The layer and kind of the probes are those with the best validation score at that step.

    Returns:
        score and sample by the values that identify a sample: its prompt and seed, and the name and
        content hash of its source image.
    """
    cell = summary.properties[prop].last
    score = run.open(f"scores/{prop}", require_complete=True).score.sel(
        condition=PROBE_CONDITION,
        kind=cell.kind,
        metric=cell.metric,
        step=cell.step,
        layer=cell.layer,
    )
    samples = run.samples
    values = zip(score.sample.values, score.split.values, score.values, strict=True)
    return {
        (
            samples[i].prompt,
            samples[i].seed,
            samples[i].source_image,
            samples[i].source_digest,
        ): (float(value), samples[i])
        for i, split, value in values
        if split == "test"
    }


def _difference(
    first: dict[SampleKey, tuple[float, Sample]],
    other: dict[SampleKey, tuple[float, Sample]],
    settings: BootstrapSettings,
) -> tuple[str, int]:
    """Format the mean of `other` minus `first` over the samples that both runs contain.

    Returns:
        the mean with its interval, or a dash for fewer than two samples; and the number of samples
        with a defined score in both runs.
    """
    shared = [key for key in first if key in other]
    gaps = np.array([other[key][0] - first[key][0] for key in shared])
    pairs = int(np.isfinite(gaps).sum())
    if pairs < 2:
        return "–", pairs
    bootstrap = Bootstrap.of_samples([first[key][1] for key in shared], settings, seed=0)
    return number(bootstrap.interval(gaps)), pairs
