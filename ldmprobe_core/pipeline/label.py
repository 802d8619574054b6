"""Computation of one labeling unit: the labels of one batch's images at every step."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ldmprobe_core.models.finite import require_finite_labels, require_varied
from ldmprobe_core.pipeline.model_cache import get_labelers, model_access
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import GENERATE, LABEL


def label_batch(url: str, batch: int) -> dict[str, Any]:
    """Label the final images and the step images of one batch, and write the labels to the run.

    Returns:
        numbers of ``images`` labeled, ``seconds`` taken and ``bytes`` written; 0 if already done.

    Raises:
        RuntimeError: the batch is not generated yet, or images or labels are unusable.
        UserError: the labelers' weights differ from those with which the run was created.
    """
    run = Run(url)
    if run.progress.is_done(LABEL, batch):
        return {"images": 0, "seconds": 0.0, "bytes": 0}
    if not run.progress.is_done(GENERATE, batch):
        raise RuntimeError(
            f"{run.url}: batch {batch} cannot be labeled before it is generated. Fix: generate it."
        )
    started = time.monotonic()
    study = run.study
    members = study.batches(run.n_stored)[batch]
    region = slice(members.start, members.stop)
    fingerprints = run.attributes["labeler_fingerprints"]
    count = written = 0
    for source, group in (
        ("image", "labels"),
        ("trajectory", "labels_trajectory"),
        ("clean", "labels_clean"),
    ):
        images = run.read("images", source, sample=region)
        leading = images.shape[:-3]
        flat = images.reshape(-1, *images.shape[-3:])
        count += len(flat)
        if source == "image":
            require_varied(images, members)
        with model_access(study):
            torch.set_num_threads(study.sampling.threads)
            labels = {
                "class_score" if prop == "class" else prop: labeler(flat)
                for prop, labeler in get_labelers(study, fingerprints).items()
            }
        for name, values in labels.items():
            require_finite_labels(name, values, members)
        for prop in study.labels.maps:
            # Exact maps exist for source images only, so the labels of step images are NaN.
            if prop not in labels:
                labels[prop] = (
                    run.read("exact_maps", prop, sample=region)
                    if source == "image"
                    else np.full(flat.shape[:3], np.nan, np.float32)
                )
        stored = {
            name: values.reshape(*leading, *values.shape[1:]).astype(
                np.float32 if source == "image" or name == "class_score" else np.float16
            )
            for name, values in labels.items()
        }
        run.write(group, stored, sample=region)
        written += sum(values.nbytes for values in stored.values())
    run.progress.mark_done(LABEL, batch)
    return {"images": count, "seconds": time.monotonic() - started, "bytes": written}
