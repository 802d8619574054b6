"""Comparison of finished runs, based on the test samples that they share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ldmprobe_core.analysis.records import Summary, load_summary
from ldmprobe_core.analysis.report.text import number, step
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.pipeline.environments import COMPUTING, environment_notes
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.conditions import PROBE_CONDITION
from ldmprobe_core.study.probe_sections import BootstrapSettings
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import DEFINING, Study

SampleKey = tuple[str, int, str | None, str | None]
"""Prompt, seed, file name of the source image, and hash of this image and its maps."""


def compare(runs: list[Run]) -> list[dict[str, str]]:
    """Build a table that compares several runs with the first run in the list.

    The table has one row for each property and run, with the score at the last step, its difference
    to the first run's score, and the onset and settled steps.  The difference is a mean over the
    test samples that both runs contain (same prompt, seed and source image, by name and content),
    with a bootstrap interval over their prompts.  It is a dash if the runs share fewer than two of
    these samples.  The column ``differs in`` names the settings of the study that are not those of
    the first run (`differing_settings`), separated by commas.

    Raises:
        UserError: a run is not finished, fewer than two runs are given, they have no property in
            common, or they define a property of the same name differently.
        RunError: a summary names a cell that its run has no scores of.
    """
    if len(runs) < 2:
        raise UserError(f"runs: too few to compare ({len(runs)}). Fix: give two or more.")
    require_same_definitions(runs)
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
    differing = [", ".join(differing_settings(runs[0], run)) for run in runs]
    rows = []
    for prop in common:
        first = _last_scores(runs[0], summaries[0], prop)
        for run, summary, keys in zip(runs, summaries, differing, strict=True):
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
                    "differs in": keys,
                }
            )
    return rows


def require_same_definitions(runs: list[Run]) -> None:
    """Check that runs with a declared property of the same name define it alike.

    A process has one registry of properties, so it cannot read the studies of runs that do not.
    The definitions are therefore read as text.

    Raises:
        UserError: two runs define a property differently; the message names the fields.
    """
    known: dict[str, tuple[Run, dict[str, Any]]] = {}
    for run in runs:
        for name, record in _declared(run).items():
            first, other = known.setdefault(name, (run, record))
            differing = [key for key in DEFINING if record.get(key) != other.get(key)]
            if differing:
                raise UserError(
                    f"runs: {first.url} and {run.url} define the property {name!r} differently "
                    f"({', '.join(differing)}), so their scores are not comparable. Fix: compare "
                    "runs with the same definition"
                )


def _declared(run: Run) -> dict[str, dict[str, Any]]:
    """Read the properties that a run's study declares; none if study.json is damaged.

    A vector is an entry of its own, so that vectors of other components differ too.
    """
    try:
        records = dict(json.loads(run.location.read_text("study.json")).get("properties", {}))
        places = [(one["component"], name) for name, one in records.items() if one.get("component")]
        for place, name in places:
            vector = records.setdefault(place["vector"], {"kind": "vector", "component": {}})
            vector["component"][name] = place
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}  # Reading the study names the damage.
    return records


def differing_settings(first: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Find the settings in which the studies of two runs differ.

    The name of a study, the settings of its workers and the paths of its input files are left out,
    because they do not change results.  ``model weights`` stands for the fingerprint of the model's
    files, which can differ although ``model.source`` is the same, and ``labels.depth files`` for
    that of the weights or code of a labeler of the same name.

    Returns:
        values in the first and in the other run by dotted key, in the order of the study's keys; a
        key that one of them lacks has the value None there.
    """
    contents = [settings_that_affect_results(run.study) for run in (first, other)]
    attributes = [run.attributes for run in (first, other)]
    weights = [one.get("model_fingerprint") for one in attributes]
    differing = different_values(contents[0], contents[1])
    if weights[0] != weights[1]:
        differing["model weights"] = (weights[0], weights[1])
    labelers, others = (one.get("labeler_fingerprints", {}) for one in attributes)
    for prop in labelers:
        # Labelers of other names are among the settings already.
        known = any(f"{key}.".startswith(f"labels.{prop}.") for key in differing)
        if prop in others and labelers[prop] != others[prop] and not known:
            differing[f"labels.{prop} files"] = labelers[prop], others[prop]
    return differing


def settings_that_affect_results(study: Study) -> dict[str, Any]:
    """Return a study's settings as JSON, without its name, its workers and paths of input files."""
    ignored: Any = {"name": True, "execution": True, "prompts": {"files"}, "images": {"folder"}}
    return study.model_dump(mode="json", by_alias=True, exclude=ignored)


def different_values(first: Any, other: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the pairs of values that differ between two nested mappings, by dotted key."""
    if not isinstance(first, dict) or not isinstance(other, dict):
        return {} if first == other else {key: (first, other)}
    differing: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*first, *other]):
        differing |= different_values(first.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    return differing


def difference_notes(runs: list[Run]) -> tuple[str, ...]:
    """Describe the settings and versions in which runs differ from the first run in the list.

    Returns:
        for each run, a sentence if its study differs, one if the packages that compute results
        have other versions, and one if several versions of a package took part in it.
    """
    notes = []
    for run in runs[1:]:
        differing = differing_settings(runs[0], run)
        if differing:
            settings = ", ".join(
                f"{key} ({_value(a)} and {_value(b)})" for key, (a, b) in differing.items()
            )
            notes.append(
                f"{runs[0].url} and {run.url} are of different studies, so their scores may differ "
                f"because of any of these settings: {settings}"
            )
        versions = [one.attributes.get("versions", {}) for one in (runs[0], run)]
        others = [
            f"{name} ({versions[0][name]} and {versions[1][name]})"
            for name in COMPUTING
            if all(name in one for one in versions) and versions[0][name] != versions[1][name]
        ]
        if others:
            notes.append(
                f"{runs[0].url} and {run.url} were made with other versions, which may change "
                f"results: {', '.join(others)}"
            )
    mixed = [(run.url, note) for run in runs for note in environment_notes(run)]
    return (*notes, *(f"{url}: {note}" for url, note in mixed))


def _value(value: Any) -> str:
    """Format the value of a setting for a sentence."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _last_scores(run: Run, summary: Summary, prop: str) -> dict[SampleKey, tuple[float, Sample]]:
    """Read each test sample and its score at the last step, from a property's best probe there.

    The best probe has the layer and kind with the best validation score at the last step.

    Returns:
        scores and samples by the values that identify a sample.

    Raises:
        RunError: the run has no scores of the cell that its summary names.
    """
    cell = summary.properties[prop].last
    try:
        score = run.open(f"scores/{prop}", require_complete=True).score.sel(
            condition=PROBE_CONDITION,
            kind=cell.kind,
            metric=cell.metric,
            step=cell.step,
            layer=cell.layer,
        )
    except KeyError:
        raise RunError(
            f"{run.url}: summary.json names step {cell.step} of layer {cell.layer!r:.60} for "
            f"{prop}, but the run holds no score of it. Fix: `ldmprobe report {run.url}` writes "
            "summary.json again from the stored scores"
        ) from None
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
