"""Classification of photographs with the class labeler of a run."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ldmprobe_core.analysis.classes.records import (
    CONFIDENT,
    PHOTOGRAPHS,
    TIE,
    PhotographRecord,
    PhotographsRecord,
)
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import load_labeler
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.output_checks import require_finite_labels, require_shares
from ldmprobe_core.pipeline.labels import top_classes
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.readers.image_folder import list_images, read_image
from ldmprobe_core.study.readers.value_types import user_path


def classify_photographs(run: Run, folder: str) -> PhotographsRecord:
    """Classify photographs with the run's class labeler, and write the results into the run.

    Args:
        run: run to which the photographs are compared.
        folder: folder of PNG, JPEG or WebP files.  The photographs are cropped to the aspect ratio
            of the run's images, and resized.

    Raises:
        UserError: the folder does not exist or contains no images.
        RunError: the labeler's results for a photograph, named by its number from 0, are no
            probabilities.
    """
    study = run.study
    names = list_images(folder, study.map_properties)
    spec = study.labels.classes
    if spec is None:
        raise UserError(
            "labels.class: the run has no class labeler (null). Fix: name one in the study, and "
            "make a new run."
        )
    sizes = run.open("images").sizes
    size = sizes["y"], sizes["x"]
    labeler = load_labeler("class", spec, pick_device(study.execution.wanted_device))
    photographs = np.stack([read_image(user_path(folder) / name, size) for name in names])
    scores = labeler(photographs)
    numbers = range(len(names))
    require_finite_labels("class", scores, numbers)
    require_shares("class", scores, numbers, "class probabilities")
    top = [labeler.classes[i] if i >= 0 else TIE for i in top_classes(scores)]
    record = PhotographsRecord(
        count=len(names),
        confident=float((scores.max(1) > CONFIDENT).mean()),
        top=float(scores.max(1).mean()),
        classes=dict(Counter(top).most_common()),
        known=len(labeler.classes),
        photographs=[
            PhotographRecord(name=name, category=category, probability=float(score))
            for name, category, score in zip(names, top, scores.max(1), strict=True)
        ],
    )
    run.location.write_text(PHOTOGRAPHS, record.model_dump_json(indent=2) + "\n")
    return record
