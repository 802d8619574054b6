"""Figures and pages of a report that show single samples, and not statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldmprobe_core.analysis.classes.curves import stable_steps, target_classes
from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report import figures
from ldmprobe_core.analysis.report.drawing.figure_writer import FigureWriter
from ldmprobe_core.analysis.report.samples_page import write_samples_page
from ldmprobe_core.analysis.stored_probes import SampleMaps
from ldmprobe_core.pipeline.groups import STEP_IMAGES
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.storage.run import Run


def add_sample_grids(
    writer: FigureWriter,
    samples: list[dict[str, list[np.ndarray]]],
    steps: list[int],
    indices: list[int],
) -> None:
    """Draw the step images, probe maps and labeler maps of the given samples.

    Args:
        writer: writer of the figures.
        samples: rows of each sample (`figures.sample_rows`).
        steps: steps that the rows show, counted from 1.
        indices: indices of the samples.
    """
    for index, rows in zip(indices, samples, strict=True):
        writer.write(
            "samples",
            f"sample-{index:05d}",
            figures.sample_grid(rows, steps),
            f"Step images, probe maps and labeler maps of sample {index}.",
            caption=_caption(writer.run, index),
        )


def class_figures(run: Run, summary: Summary, indices: list[int]) -> list[dict[str, Any]]:
    """Draw the class probabilities over steps of the given samples.

    Returns:
        records of the figures, as in `FigureWriter`; empty if the run has no classes.
    """
    if summary.classes is None:
        return []
    writer = FigureWriter(run)
    targets, _ = target_classes(run)
    rows = figures.step_image_rows(run, indices)
    scores = run.read("labels_trajectory", "class_score", sample=rows)
    decoded = run.read(STEP_IMAGES, "step") - 1
    first_steps = stable_steps(scores, targets[indices], decoded)
    for index, first_step in zip(indices, first_steps, strict=True):
        writer.write(
            "classes",
            f"class-{index:05d}",
            figures.class_figure(run, index, int(targets[index]), float(first_step)),
            f"Class probabilities over steps of sample {index}.",
            caption=_caption(run, index),
        )
    return writer.entries["classes"]


def draw_sample_pages(
    run: Run, maps: SampleMaps, summary: Summary, indices: list[int]
) -> dict[str, Any]:
    """Write the page of samples and the figures of the given samples' classes.

    Returns:
        records of the figures as ``classes``, and as ``viewed`` the number of samples on the page.
    """
    viewed = write_samples_page(run, maps, summary)
    return {"classes": class_figures(run, summary, indices), "viewed": viewed}


def draw_answer(
    url: str, summary: dict[str, Any], samples: list[int]
) -> tuple[dict[str, Any], bytes]:
    """Draw in a second process what `second_process.SecondProcess.submit` describes.

    Args:
        url: folder of the finished run.
        summary: summary of the run.
        samples: indices of the samples whose classes are drawn.

    Returns:
        the result of `draw_sample_pages`, and no bytes.
    """
    run, record = Run(url), Summary.model_validate(summary)
    maps = SampleMaps(run, label_set(run), record)
    return draw_sample_pages(run, maps, record, samples), b""


def _caption(run: Run, index: int) -> str | None:
    """Return a sample's prompt or, without one, the file name of its source image."""
    sample = run.samples[index]
    return sample.prompt or sample.source_image
