"""Class probabilities over steps, and the step from which a sample's class is recognised."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.analysis.classes.records import (
    CONFIDENT,
    PHOTOGRAPHS,
    ClassesRecord,
    PhotographsRecord,
)
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.pipeline.labels import top_classes
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.storage.run import SOURCES, Run


def same_class(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return whether the class with the highest score is a target class, (...) bool.

    Args:
        scores: class scores (..., class).
        targets: index of each target class, (...); -1 for none, which no class is equal to.
    """
    return (top_classes(scores) == targets) & (targets >= 0)


def first_stable_step(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Find the first step from which the target class stays the top class until the last step.

    Args:
        scores: class scores (sample, step, class).
        targets: index of each sample's target class, (sample,); -1 if it has none.

    Returns:
        steps counted from 1, (sample,) float64; NaN if the sample has no target class, or another
        class has the highest score at the last step, or as high a score.
    """
    leads = same_class(scores, targets[:, None])
    stays = np.logical_and.accumulate(leads[:, ::-1], axis=1)[:, ::-1]
    return np.where(stays[:, -1], stays.argmax(1) + 1.0, np.nan)


def stable_steps(scores: np.ndarray, targets: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Find the sampler step from which each sample's target class stays the top class to the end.

    This function does the same as `first_stable_step`, but its scores cover the decoded steps only.

    Args:
        scores: class scores (sample, decoded step, class).
        targets: index of each sample's target class, (sample,); -1 if it has none.
        decoded: index of each decoded step (from 0), (decoded step,).
    """
    first = first_stable_step(scores, targets)
    numbers = np.append(decoded + 1.0, np.nan)
    return numbers[np.where(np.isfinite(first), first - 1, len(decoded)).astype(int)]


def target_classes(run: Run) -> tuple[np.ndarray, bool]:
    """Choose each sample's target class: its prompt's class, or the top class of its final image.

    If every prompt names one of the labeler's classes, the targets are the classes of the prompts.
    Otherwise, the target of every sample is the top class of its final image.

    Returns:
        indices of the classes, (sample,), and whether they come from the prompts.  The index is -1
        where several classes have the highest score in the final image.
    """
    names = [str(name) for name in run.read("labels", "class")]
    categories = [sample.category for sample in run.samples[: run.n_stored]]
    if all(category in names for category in categories):
        return np.array([names.index(str(category)) for category in categories]), True
    return top_classes(run.read("labels", "class_score")), False


def class_curves(run: Run) -> ClassesRecord:
    """Summarise the class labeler's scores of a run's final images and step images.

    Steps and agreement refer to the samples with step images.

    Raises:
        RuntimeError: some batches are not labeled.
    """
    run.progress.require_complete("labeled")
    final = run.read("labels", "class_score")
    top = top_classes(final)
    targets, by_prompt = target_classes(run)
    samples, settings = run.samples[: run.n_stored], run.study.bootstrap
    index, decoded = samples_in(run, STEP_IMAGES), run.read(STEP_IMAGES, "step") - 1
    bootstrap = Bootstrap.of_samples([samples[i] for i in index], settings, seed=0)
    agreement, recognition_step, recognized = {}, {}, {}
    for source in SOURCES:
        scores = run.read(f"labels_{source}", "class_score")
        shares: list[float | None] = [None] * run.open("progress").sizes["step"]
        for step, share in zip(decoded, same_class(scores, top[index, None]).mean(0), strict=True):
            shares[step] = float(share)
        agreement[source] = shares
        steps = stable_steps(scores, targets[index], decoded)
        recognition_step[source] = bootstrap.interval(steps)
        recognized[source] = float(np.isfinite(steps).mean())
    correct = (top == targets).astype(np.float64)
    photographs = None
    if run.location.has(PHOTOGRAPHS):
        remedy = "classify the photographs again, or remove the file"
        photographs = run.location.read_record(PHOTOGRAPHS, PhotographsRecord, remedy)
    return ClassesRecord(
        accuracy=Bootstrap.of_samples(samples, settings, seed=0).interval(correct)
        if by_prompt
        else None,
        confident=float((final.max(1) > CONFIDENT).mean()),
        by_prompt=by_prompt,
        samples=len(index),
        recognized=recognized["trajectory"],
        recognized_clean=recognized["clean"],
        recognition_step=recognition_step,
        agreement=agreement,
        photographs=photographs,
    )
