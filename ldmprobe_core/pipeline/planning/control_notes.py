"""Warnings about controls of a study that cannot tell what they are asked for."""

from __future__ import annotations

from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.schema import Study

_SIGNIFICANT = 0.05
"""Largest p value that is usually called significant."""


def permutation_notes(study: Study) -> list[str]:
    """Warn of properties without a permutation p value, or with one that cannot be significant."""
    if not study.controls.shuffled_labels:
        return []
    notes, repeated = [], [kind for kind in map(probe_kind, study.kinds) if kind.from_statistics]
    without = [
        prop
        for prop in study.labels.maps
        if not any(kind.supports(property_of(prop)) for kind in repeated)
    ]
    if without:
        notes.append(
            "probes.kinds has no kind that is fitted to every permutation of the labels (ridge and "
            f"plain_ridge are), so there is no permutation p value for {', '.join(without)}"
        )
    least = 1 / (study.controls.permutations + 1)
    if least > _SIGNIFICANT:
        notes.append(
            f"controls.permutations is {study.controls.permutations}, so that no p value can be "
            f"below {least:.3f}; at least {round(1 / _SIGNIFICANT) - 1} can show a value of "
            f"{_SIGNIFICANT}"
        )
    return notes
