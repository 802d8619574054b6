"""Creation of a study's run, or the check that an existing one has the same weights."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.labelers.registry import check_labeler, labelers_of
from ldmprobe_core.models.files.weights import fingerprint, model_folder
from ldmprobe_core.pipeline.model_cache import get_labelers, model_access
from ldmprobe_core.pipeline.planning.plan import StudyPlan, check_store, plan_of
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.schema import RunShape
from ldmprobe_core.study.schema import Study

_PACKAGES = ("ldmprobe", "torch", "diffusers", "transformers", "numpy", "zarr", "xarray", "prefect")


def prepare_run(study: Study, store: str) -> Run:
    """Check the study, then create its run in ``store``, or open the one that exists.

    If the plan in use (`StudyPlan.in_use`) is this study's, no other plan is made.

    Raises:
        UserError: a mistake in the study, a store that is too small or not writable, or an existing
            run of another model.
    """
    plan = plan_of(study)
    plan.require_complete()
    study = plan.study
    run = run_in(store, study)
    check_store(plan, run)
    if not run.exists:
        shape, record = _run_shape(plan)  # loads labelers, so it comes before the lock is taken
        with run.creation_lock() as lock:
            if not run.exists:
                lock.require_held()
                run.create(shape, record)
                return run
    check_origin(run, study)
    run.location.write_text("study.json", study.to_json())  # only its execution section may differ
    return run


def _run_shape(plan: StudyPlan) -> tuple[RunShape, dict[str, Any]]:
    """The shape of a study's run, and the metadata that is recorded with it."""
    study = plan.study
    with model_access(study):
        labelers = get_labelers(study)
    units = dict.fromkeys(study.labels.maps, "as the maps that were given")
    shape = RunShape(
        study,
        list(plan.samples),
        plan.shapes,
        plan.size,
        plan.steps,
        labelers["class"].classes if "class" in labelers else (),
        units | {prop: labeler.units for prop, labeler in labelers.items()},
        plan.exact_properties,
    )
    return shape, {
        "model_fingerprint": fingerprint(model_folder(study.model)),
        "labeler_fingerprints": plan.labelers,
        "versions": versions(),
        "notes": list(plan.notes),
    }


def check_origin(run: Run, study: Study) -> None:
    """Refuse a run that was created with other weights of the model or of a labeler.

    Raises:
        UserError: a fingerprint differs from the one that the run recorded.
    """
    attributes = run.attributes
    for prop, spec in labelers_of(study).items():
        recorded, current = attributes["labeler_fingerprints"].get(prop), check_labeler(prop, spec)
        if recorded != current:
            raise UserError(
                f"{run.url}: the weights of labels.{prop} had fingerprint {recorded} when the run "
                f"was created, and have {current} now. Fix: move that run away, or choose another "
                "store"
            )
    recorded = attributes["model_fingerprint"]
    current = fingerprint(model_folder(study.model))
    if recorded != current:
        raise UserError(
            f"{run.url}: the model had fingerprint {recorded} when the run was created, and "
            f"model.source {study.model.source!r} has {current} now. Fix: move that run away, or "
            "choose another store"
        )


def run_in(store: str, study: Study) -> Run:
    """Handle of a resolved study's run in a store, whether or not it exists yet.

    Raises:
        UserError: ``store`` is not a path or URL.
    """
    return Run(f"{Location(store).url}/{study.run_name}")


def notes_on_new_run(plan: StudyPlan, run: Run) -> tuple[str, ...]:
    """Sentences about runs of the same study with other source images, which are not continued.

    Args:
        run: handle of the plan's run, which does not exist yet; its store is searched.
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
            continue  # a run of another release, or damaged: nothing can be said of it
        if same:
            now = {sample.source_image: sample.source_digest for sample in plan.samples}
            notes.append(
                f"{other.url} is a run of this study with other images "
                f"({_differences(before, now)}). Splits and seeds depend on all images, so that a "
                "new run begins. To continue that one, restore the folder"
            )
    return tuple(notes)


def _without_image_set(study: Study) -> dict[str, Any]:
    images = {"folder", "samples", "content_hash"}
    return study.model_dump(exclude={"execution": True, "images": images})


def _differences(before: dict[str | None, str | None], now: dict[str | None, str | None]) -> str:
    """Differences of two sets of files, given as name to hash, in words."""
    kinds = {
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed": [name for name in now if name in before and now[name] != before[name]],
    }

    def listed(names: list[str | None]) -> str:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(map(str, names[:3])) + more

    return "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return packages
