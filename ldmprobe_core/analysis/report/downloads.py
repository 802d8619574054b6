"""Downloads of a report: scores of all layers and steps as CSV, and citations as BibTeX."""

from __future__ import annotations

import csv
import io

import numpy as np

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.storage.run import Run

COLUMNS = ("property", "metric", "kind", "condition", "step", "layer", "mean", "samples")
"""Columns of `scores_csv`; ``samples`` is the number of samples with a defined score."""


def scores_csv(run: Run, properties: list[str]) -> str:
    """Return mean test scores as CSV, with one row for each layer, step and metric.

    Args:
        run: finished run.
        properties: properties to list.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    test = [i for i, sample in enumerate(run.samples) if sample.split == "test"]
    for prop in properties:
        scores = run.open(f"scores/{prop}").score
        scores = scores.sel(sample=scores.sample[np.isin(scores.sample, test)])
        scores = scores.transpose("metric", "kind", "condition", "step", "layer", "sample")
        values = scores.values
        defined = np.isfinite(values)
        counts = defined.sum(-1)
        sums = np.where(defined, values, 0).sum(-1, dtype=np.float64)
        names = [[str(v) for v in scores[dim].values] for dim in scores.dims[:-1]]
        for index in np.argwhere(counts):
            cell = tuple(index)
            row = [labels[i] for labels, i in zip(names, cell, strict=True)]
            writer.writerow([prop, *row, f"{sums[cell] / counts[cell]:.6f}", counts[cell]])
    return text.getvalue()


def bibtex(summary: Summary) -> str:
    """Return BibTeX entries of ldmprobe, with the run's hashes, and of the study it extends."""
    version = summary.versions.get("ldmprobe", "")
    return f"""@software{{ldmprobe,
  title = {{ldmprobe: linear probes on every step and layer of a latent diffusion model}},
  author = {{{{The ldmprobe maintainers}}}},
  version = {{{version}}},
  note = {{study {summary.study_hash}, model {summary.model_fingerprint}}},
}}

@misc{{chen2023beyond,
  title = {{Beyond Surface Statistics: Scene Representations in a Latent Diffusion Model}},
  author = {{Chen, Yida and Vi{{\\'e}}gas, Fernanda and Wattenberg, Martin}},
  year = {{2023}},
  eprint = {{2306.05720}},
  archivePrefix = {{arXiv}},
}}
"""
