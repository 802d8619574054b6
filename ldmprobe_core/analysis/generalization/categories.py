"""Probe scores by image category, and scores on categories left out of training."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.analysis.generalization.records import CategoryRecord, HoldoutRecord
from ldmprobe_core.analysis.generalization.refits import RefitData, TestScorer, ordered_by_prompt
from ldmprobe_core.probing.inference.bootstrap import MINIMUM_CLUSTERS, Bootstrap
from ldmprobe_core.study.probe_sections import BootstrapSettings
from ldmprobe_core.study.samples import Sample

FOLDS = 4
"""Number of folds of categories."""


def category_scores(
    scores: np.ndarray, samples: list[Sample], settings: BootstrapSettings, seed: int
) -> dict[str, CategoryRecord] | None:
    """Average scores within each category, with bootstrap intervals that resample prompts.

    Args:
        scores: score of each sample, (sample,); NaN scores are skipped.
        samples: the same samples.
        settings: settings of the bootstrap.
        seed: seed of the bootstrap.

    Returns:
        records by category, in alphabetical order; None if a category is unknown.
    """
    known = [sample.category for sample in samples if sample.category is not None]
    if len(known) < len(samples):
        return None
    records = {}
    for name in sorted(set(known)):
        members = np.array([sample.category == name for sample in samples])
        prompts = np.array([sample.group for sample in samples])[members]
        bootstrap = Bootstrap(prompts, settings.resamples, settings.level, seed)
        records[name] = CategoryRecord(
            samples=int(members.sum()), score=bootstrap.interval(scores[members])
        )
    return records


def category_folds(samples: list[Sample], seed: int) -> list[list[str]] | None:
    """Divide the categories of samples into folds at random.

    Returns:
        categories of each fold, in alphabetical order; None if a category is unknown or there are
        fewer than `MINIMUM_CLUSTERS`.
    """
    known = {sample.category for sample in samples if sample.category is not None}
    if any(sample.category is None for sample in samples) or len(known) < MINIMUM_CLUSTERS:
        return None
    names = np.random.default_rng(seed).permutation(sorted(known))
    return [sorted(str(name) for name in names[i::FOLDS]) for i in range(FOLDS)]


def holdout_record(
    data: RefitData,
    folds: list[list[str]],
    samples: list[Sample],
    scorer: TestScorer,
    bootstrap: Bootstrap,
    step: int,
    seed: int,
) -> HoldoutRecord:
    """Score probes on the test samples of categories that were left out of their training.

    The scores of a fold are undefined if no training or validation sample is left without it.

    Args:
        data: activations and labels of all samples.
        folds: result of `category_folds`.
        samples: the same samples.
        scorer: scorer of the property on the test samples.
        bootstrap: bootstrap over the test samples.
        step: step of the activations (from 1), for the record.
        seed: seed of the random subsets of `HoldoutRecord.matched`.
    """
    fold_of = {name: fold for fold, names in enumerate(folds) for name in names}
    of_sample = np.array([fold_of[str(sample.category)] for sample in samples])
    train, validation, n = data.train, data.validation, len(folds)
    # For comparison, leave out random training samples, as many as each fold contains.
    prompts = np.array([samples[i].group for i in train])
    shuffled = ordered_by_prompt(train, prompts, np.random.default_rng(seed))
    sizes = [int((of_sample[train] == fold).sum()) for fold in range(n)]
    random_parts = np.split(shuffled, np.cumsum(sizes)[:-1])
    parts = [train[of_sample[train] == fold] for fold in range(n)]
    checks = [validation[of_sample[validation] == fold] for fold in range(n)]
    every_fold = np.arange(n)
    tested = [scorer.test[of_sample[scorer.test] == fold] for fold in every_fold]
    unseen, matched, ordinary = (
        scorer.scores(tokens, 0.0, headline_only=True)[0]
        for tokens in (
            _leave_out(data, parts, checks, tested, scorer.test),
            _leave_out(data, random_parts, [validation], tested, scorer.test),
            _leave_out(data, [train[:0], train], [validation], [scorer.test], scorer.test),
        )
    )
    return HoldoutRecord(
        step=step,
        folds=folds,
        unseen=bootstrap.interval(unseen),
        ordinary=bootstrap.interval(ordinary),
        matched=bootstrap.interval(matched),
        difference=bootstrap.interval(unseen - ordinary),
        matched_difference=bootstrap.interval(unseen - matched),
    )


def _leave_out(
    data: RefitData,
    parts: list[np.ndarray],
    checks: list[np.ndarray],
    tested: list[np.ndarray],
    test: np.ndarray,
) -> np.ndarray:
    """For each part of the training samples, predict test samples with a probe fitted to the rest.

    Args:
        data: activations and labels.
        parts: indices of the training samples of each part.
        checks: indices of the validation samples of each part, likewise left out; if there is only
            one set, it serves all probes.
        tested: indices of the samples that are predicted without each part.
        test: indices of all predicted samples, (n,).

    Returns:
        (n, y, x) float64 relative to the probes' cuts; NaN for samples without a prediction.
    """
    fits, validations = [data.sums(part) for part in parts], [data.sums(part) for part in checks]
    predicted = np.full((len(test), *data.grid), np.nan)
    for fold, members in enumerate(tested):
        rest = [i for i in range(len(parts)) if i != fold]
        kept = [i for i in range(len(checks)) if i != fold] if len(checks) > 1 else [0]
        sums, validation = fits[rest[0]], validations[kept[0]]
        for i in rest[1:]:
            sums += fits[i]
        for i in kept[1:]:
            validation += validations[i]
        if not (sums.n and validation.n and len(members)):
            continue
        probe = data.fit(sums, validation)
        cut = data.cut(probe, np.concatenate([parts[i] for i in rest]))
        predicted[np.isin(test, members)] = data.predict(probe, members, cut)
    return predicted
