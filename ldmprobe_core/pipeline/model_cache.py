"""Per-process cache of loaded models, a sampler and labelers, and the locks that guard it.

On a CPU every thread has models of its own (`thread_local_models`); on a GPU all threads share one
set (`shared_models`).  A study with another model replaces the last one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.labelers.registry import check_labeler, labelers_of, load_labeler
from ldmprobe_core.models.allocator import keep_freed_memory
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.files.weights import fingerprint, model_folder
from ldmprobe_core.models.loading import load_pipeline
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.pipeline.shared_lock import SharedExclusiveLock
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.schema import Study

load_counts: Counter[str] = Counter()
"""Number of times this process has loaded a sampler (``generator``) and ``labelers``."""


class ThreadLocalModels(threading.local):
    """Models that a thread has loaded: kind of model to its cache key and the models."""

    def __init__(self) -> None:
        self.loaded: dict[str, tuple[str, Any]] = {}


thread_local_models = ThreadLocalModels()
_model_lock = SharedExclusiveLock()
shared_models: dict[str, tuple[str, Any]] = {}
_device = threading.Lock()


def _shared(study: Study) -> bool:
    """Whether threads take turns with one set of models: on a GPU, to save its memory.

    On a CPU, two concurrent batches with one thread and one model each take a seventh less time
    than the same batches one after the other with two threads.
    """
    return pick_device(study.execution.wanted_device).type != "cpu"


def model_access(study: Study) -> AbstractContextManager[Any]:
    """Exclusive access to the calling thread's models of a study; no model loads meanwhile."""
    return _device if _shared(study) else _model_lock.computing()


@contextmanager
def use_models(run: Run) -> Iterator[tuple[PipelineSampler, dict[str, Labeler]]]:
    """Sampler and labelers of a run, with exclusive access to them."""
    study = run.study
    with model_access(study):
        attributes = run.attributes
        labelers = get_labelers(study, attributes["labeler_fingerprints"])
        yield get_sampler(study, attributes["model_fingerprint"]), labelers


def get_or_load(study: Study, kind: str, key: str, load: Callable[[], Any]) -> Any:
    """Models of one kind from the cache, or loaded into it in place of the last study's.

    Args:
        kind: such as ``labelers``; the cache holds one of each kind.
        key: identifies the models; a cached one with another key is replaced.
        load: loads the models.
    """
    cache = shared_models if _shared(study) else thread_local_models.loaded
    if cache.get(kind, ("", None))[0] != key:
        with _model_lock.loading():
            cache[kind] = (key, load())
            load_counts[kind] += 1
    return cache[kind][1]


def get_sampler(study: Study, model: str) -> PipelineSampler:
    """The study's sampler, loaded at the first call; call it inside `model_access`.

    Args:
        model: fingerprint that the run was started with.

    Raises:
        UserError: the model's files on this worker have another fingerprint.
    """

    def load() -> PipelineSampler:
        fingerprint_here = fingerprint(model_folder(study.model))
        if fingerprint_here != model:
            raise UserError(
                f"model.source {study.model.source!r} has fingerprint {fingerprint_here} on this "
                f"worker, and the run was started with {model}. Fix: give every worker the same "
                "weights"
            )
        keep_freed_memory()
        device = pick_device(study.execution.wanted_device)
        architecture = detect_architecture(model_folder(study.model))
        return PipelineSampler(load_pipeline(study, device), architecture, study)

    return get_or_load(
        study, "generator", f"{study.hash} {model} {study.execution.wanted_device}", load
    )


def get_labelers(study: Study, fingerprints: dict[str, str] | None = None) -> dict[str, Labeler]:
    """The study's labelers by property, loaded at the first call; call it inside `model_access`.

    Args:
        fingerprints: those that the run was started with; None while the run is created.

    Raises:
        UserError: a labeler's files on this worker have another fingerprint.
    """

    def load() -> dict[str, Labeler]:
        for prop, spec in labelers_of(study).items():
            fingerprint_here = check_labeler(prop, spec)
            if fingerprints is not None and fingerprint_here != fingerprints[prop]:
                raise UserError(
                    f"labels.{prop} has weights with fingerprint {fingerprint_here} on this "
                    f"worker, and the run was started with {fingerprints[prop]}. Fix: give every "
                    "worker the same weights"
                )
        device = pick_device(study.execution.wanted_device)
        return {prop: load_labeler(prop, r, device) for prop, r in labelers_of(study).items()}

    named = " ".join(f"{prop}={r.model_dump_json()}" for prop, r in labelers_of(study).items())
    known = " ".join((fingerprints or {}).values())
    return get_or_load(study, "labelers", f"{named} {known} {study.execution.wanted_device}", load)
