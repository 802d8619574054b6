"""Warnings about controls of a study that cannot tell what they are asked for."""

from __future__ import annotations

from math import ceil

from ldmprobe_core.errors import counted, verb
from ldmprobe_core.probing.fitters.adam import ADAM_BATCH, ADAM_EPOCHS
from ldmprobe_core.study.batching import different_shuffles
from ldmprobe_core.study.probe_kinds import ADAM, MLP, probe_kind
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study

_SIGNIFICANT = 0.05
"""Largest p value that is usually called significant."""

_PAPER_UPDATES = 1860
"""Number of updates of the probes of Chen et al. (2023), on 246 training images."""


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


def few_training_notes(study: Study, samples: list[Sample]) -> list[str]:
    """Warn of permutations and of updates of probes that few training images make too few."""
    training = sum(sample.split == "train" for sample in samples)
    notes, different = [], different_shuffles(study, samples)
    if study.controls.shuffled_labels and different < study.controls.permutations:
        notes.append(
            f"controls.permutations is {study.controls.permutations}, but labels of {training} "
            f"training images have {counted(different, 'different permutation')}, so there is no "
            "permutation p value; more training images give one"
        )
    updates = ADAM_EPOCHS * ceil(training / ADAM_BATCH)
    kinds = [kind for kind in study.kinds if kind in (ADAM.name, MLP.name)]
    if kinds and updates < _PAPER_UPDATES / 2:
        notes.append(
            f"{counted(training, 'training image')} {verb(training, 'gives', 'give')} probes of "
            f"kind {' and '.join(kinds)} {updates:,} "
            f"updates (the paper's {_PAPER_UPDATES:,}), so they may score low for want of updates; "
            "more training images give more"
        )
    return notes
