"""Creation of a study's run, or a check that an existing run was made with the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ldmprobe_core
from ldmprobe_core.errors import RunError, UserError, verb
from ldmprobe_core.labelers.checks.trial import trial_problems
from ldmprobe_core.labelers.registry import check_labeler, definition_of, labelers_of
from ldmprobe_core.models.sources.lookup import source_of
from ldmprobe_core.models.timesteps import log_snr
from ldmprobe_core.pipeline.environments import versions
from ldmprobe_core.pipeline.model_cache import get_labelers, model_access
from ldmprobe_core.pipeline.planning.labeler_sizes import wide_properties
from ldmprobe_core.pipeline.planning.plan import StudyPlan, plan_of
from ldmprobe_core.pipeline.planning.store_checks import check_store
from ldmprobe_core.storage.bookkeeping import write_identity
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.probe_schema import RunShape
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.metadata_cache import invalidate_cache
from ldmprobe_core.study.schema import Study


def prepare_run(study: Study, store: str) -> Run:
    """Check a study, then create its run in a store, or open the run if it exists.

    Args:
        study: study to run.  Inside the block of `StudyPlan.in_use`, that plan is used for it.
        store: path or URL of the folder that holds runs.

    Raises:
        UserError: the study has a mistake, a model or file is missing, the store is not writable or
            too small, or the existing run was created with other weights.
    """
    plan = plan_of(study)
    plan.require_complete()
    study = plan.study
    run = run_in(store, study)
    check_store(plan, run)
    if not run.exists:
        # Call `_run_shape` before taking the lock, because it loads the labelers, which takes long.
        shape, record = _run_shape(plan)
        with run.creation_lock() as lock:
            if not run.exists:
                lock.require_held()
                run.create(shape, record)
                return run
    check_fingerprints(run, study)
    write_identity(run.location)
    # This process may have computed units of the run before, and remember that it recorded the
    # device that they were computed on.
    invalidate_cache(run.url)
    # The settings of the `execution` section do not affect results, so they may differ from the
    # recorded ones.  Record the current ones.
    run.location.write_text("study.json", study.to_json())
    return run


def _run_shape(plan: StudyPlan) -> tuple[RunShape, dict[str, Any]]:
    """Return the shapes of a new run's arrays, and the metadata to record in the run.

    Raises:
        UserError: a labeler of the user cannot label images.
    """
    study = plan.study
    with model_access(study):
        labelers = get_labelers(study)
        problems = trial_problems(labelers, plan.size, study.execution.elsewhere)
    if problems:
        raise UserError(problems[0])
    classes = labelers["class"].classes if "class" in labelers else ()
    units = dict.fromkeys(study.labels.maps, "as the maps that were given")
    shape = RunShape(
        study,
        list(plan.samples),
        plan.shapes,
        plan.size,
        plan.steps,
        classes,
        units | {prop: labeler.units for prop, labeler in labelers.items()},
        plan.exact_properties,
        plan.text_channels,
        wide_properties(study),
    )
    source = source_of(study.model)
    return shape, {
        "model_fingerprint": source.fingerprint(),
        "labeler_fingerprints": plan.labelers,
        "versions": versions(),
        "notes": [*plan.notes, *_class_notes(plan, classes)],
        "log_snr": log_snr(source.architecture, study),
    }


def _class_notes(plan: StudyPlan, classes: tuple[str, ...]) -> list[str]:
    """Warn if some samples name no class of the labeler, so that no sample's class is used.

    Args:
        plan: plan with the samples.
        classes: names of the labeler's classes; empty without a class labeler.
    """
    categories = [sample.category for sample in plan.samples]
    unknown = [one for one in categories if one not in classes]
    if not classes or not unknown or not any(categories):
        return []
    named = ", ".join(repr(one)[:40] for one in dict.fromkeys(unknown) if one is not None)
    which = f", such as {named:.120}" if named else ""
    return [
        f"{len(unknown)} of {len(categories)} images {verb(len(unknown), 'names', 'name')} no "
        "class that the class labeler "
        f"knows{which}, so that the top class of each finished image is followed over the steps "
        "instead of the prompt's class"
    ]


def check_fingerprints(run: Run, study: Study) -> None:
    """Check that a run was created for a study, with the current weights of model and labelers.

    Raises:
        UserError: the run was created for another study, as when its folder was renamed, or the
            fingerprint of a model's or labeler's files differs from the recorded one.
        RunError: the recorded fingerprints are damaged.
    """
    attributes = run.attributes
    if attributes["study_hash"] != study.hash:
        raise UserError(
            f"{run.url}: this folder has the name of a run of {study.name}, and holds the run of "
            f"another study (hash {attributes['study_hash']}, not {study.hash}). Fix: give it its "
            "former name back, or choose another store"
        )
    for prop, spec in labelers_of(study).items():
        recorded, current = attributes["labeler_fingerprints"].get(prop), check_labeler(prop, spec)
        if recorded != current:
            raise UserError(
                f"{run.url}: the {definition_of(prop, spec)} of labels.{prop} had fingerprint "
                f"{recorded} when the run was created, and have {current} now. Fix: move that run "
                "away, or choose another store."
            )
    recorded = attributes["model_fingerprint"]
    current = source_of(study.model).fingerprint()
    if recorded != current:
        raise UserError(
            f"{run.url}: the model had fingerprint {recorded} when the run was created, and "
            f"model.source {study.model.source!r} has {current} now. Fix: move that run away, or "
            "choose another store."
        )


def run_in(store: str, study: Study) -> Run:
    """Return the `Run` of a study in a store; the run need not exist yet.

    Args:
        store: path or URL of the folder that holds runs.
        study: study whose input files were read (``StudyPlan.study``), since their hash is part of
            the run's name.

    Raises:
        UserError: ``store`` is not a path or URL.
    """
    return Run(f"{Location(store).url}/{study.run_name}")


def notes_on_new_run(plan: StudyPlan, run: Run) -> tuple[str, ...]:
    """Warn about earlier runs that differ from this study's run only in their source images.

    Such a run is not resumed, because the study's new run has another name.

    Args:
        plan: plan of the study.
        run: the study's run, which does not exist yet; the store that it will be in is searched.

    Returns:
        one note for each such run; empty if there is none.
    """
    study = plan.study
    if study.images is None:
        return ()
    store = run.url.rpartition("/")[0]
    notes = []
    for name in Location(store).folders(""):
        if not name.startswith(f"{study.name}-") or name == study.run_name:
            continue
        other = Run(f"{store}/{name}")
        try:
            same = _without_image_set(other.study) == _without_image_set(study)
            before = {sample.source_image: sample.source_digest for sample in other.samples}
        except (UserError, RunError, OSError, ValueError, KeyError):
            # Skip a run that is damaged or was made by another release, because its study cannot be
            # read for a comparison.
            continue
        if same:
            now = {sample.source_image: sample.source_digest for sample in plan.samples}
            notes.append(
                f"{other.url} is a run of this study with other images "
                f"({_differences(before, now)}). Splits and seeds depend on all images, so that a "
                "new run begins. To continue the earlier run, restore the folder"
            )
    return tuple(notes)


def _without_image_set(study: Study) -> dict[str, Any]:
    """Return the settings that affect results, except those that identify the source images."""
    images = {"folder", "samples", "content_hash"}
    return study.model_dump(exclude={"execution": True, "images": images})


def _differences(before: dict[str | None, str | None], now: dict[str | None, str | None]) -> str:
    """Describe which files were removed, added or changed, from their hashes by file name."""
    kinds = {
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed": [name for name in now if name in before and now[name] != before[name]],
    }

    def listed(names: list[str | None]) -> str:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(map(str, names[:3])) + more

    return "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)


def code_digest() -> str:
    """Return a digest (12 hex digits) of this package's Python files, which determine results.

    Between releases it changes with every edit, also of a comment.
    """
    root, digest = Path(ldmprobe_core.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
