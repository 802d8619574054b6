"""Results of a finished run that its report shows, and the file ``summary.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.records import PeakRecord, Summary
from ldmprobe_core.interventions.results import (
    completed_interventions,
    main_results,
    read_intervention_summary,
)
from ldmprobe_core.pipeline.environments import environment_notes
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.storage.run import Run


@dataclass(frozen=True)
class RunAnalysis:
    """Results of a run: its summary, and the scores that the figures of its report show.

    Attributes:
        summary: contents of ``summary.json``.
        curves: scores over steps by property; without `Curves.resplits` if they were kept.
        bootstrap: resamples of the test prompts.
        test: indices of the test samples, (test sample,).
        labels: label maps and splits of the run.
    """

    summary: Summary
    curves: dict[str, Curves]
    bootstrap: Bootstrap
    test: np.ndarray
    labels: LabelSet


def write_summary(run: Run, summary: Summary) -> None:
    """Write ``summary.json`` into a run, which marks the run as finished."""
    record = summary.model_dump(mode="json", by_alias=True)
    run.location.write_text("summary.json", json.dumps(record, indent=2, allow_nan=False) + "\n")


def current_fields(
    run: Run, seconds: dict[str, float], memory: dict[str, PeakRecord] | None = None
) -> dict[str, Any]:
    """Read the fields of a summary that change after its statistics are computed.

    Args:
        run: finished run.
        seconds: wall time by stage.
        memory: planned and measured peaks of memory; None stands for none.

    Returns:
        values by the name of the field of `Summary`.
    """
    return {
        "interventions": {
            name: main_results(read_intervention_summary(run, name))
            for name in completed_interventions(run)
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "memory": memory or {},
        "bytes": run.location.size(),
        "notes": (*run.attributes.get("notes", ()), *environment_notes(run)),
    }


def test_bootstrap(run: Run, labels: LabelSet) -> tuple[Bootstrap, np.ndarray]:
    """Draw the bootstrap over a run's test samples.

    Returns:
        the bootstrap, and whether each held-out sample is a test sample, (held-out sample,) bool.
    """
    samples, study = run.samples, run.study
    is_test = np.array([samples[i].split == "test" for i in labels.heldout])
    members = [samples[i] for i in labels.heldout[is_test]]
    return Bootstrap.of_samples(members, study.bootstrap, study.prompts.seed), is_test
