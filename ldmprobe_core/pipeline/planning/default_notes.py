"""Warnings about defaults of the embedded world in studies of other models."""

from __future__ import annotations

from ldmprobe_core.study.probe_sections import LabelerSpec, Labels
from ldmprobe_core.study.readers.model_record import EMBEDDED
from ldmprobe_core.study.schema import Study


def default_notes(study: Study) -> list[str]:
    """Warn of labelers and prompts of the embedded world that another model has by default.

    Args:
        study: study as the user wrote it; keys that it states are taken as meant.

    Returns:
        one sentence for labelers and one for prompts; empty for the embedded model.
    """
    if study.model.source == EMBEDDED:
        return []
    notes = []
    labels = study.labels
    left_out = [
        f"labels.{field.alias or name}"
        for name, field in Labels.model_fields.items()
        if field.default == LabelerSpec(name=EMBEDDED) and name not in labels.model_fields_set
    ]
    if left_out:
        notes.append(
            f"{', '.join(left_out)}: left out, so {EMBEDDED} labels the images, which was trained "
            "on rendered objects of 64 x 64 pixels. Name a labeler that suits the model's images, "
            "or null"
        )
    prompts = study.prompts
    chosen = "set" in prompts.model_fields_set or prompts.items or prompts.files
    if study.images is None and not chosen:
        notes.append(
            f"prompts.set: left out, so prompts are the captions of the embedded model "
            f"({prompts.set}). Name prompts that suit the model"
        )
    return notes
