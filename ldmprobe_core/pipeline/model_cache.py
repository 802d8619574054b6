"""Cache of a process's loaded models (a sampler and labelers), and the locks that protect it.

On a CPU, each thread loads its own models (`thread_local_models`).  On a GPU, all threads share one
set of models (`shared_models`).  The cache holds the models of one study at a time.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.labelers.registry import (
    check_labeler,
    definition_of,
    labelers_of,
    load_labeler,
)
from ldmprobe_core.models.allocator import keep_freed_memory
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.sources.lookup import source_of
from ldmprobe_core.models.sources.pipeline import PipelineSource
from ldmprobe_core.pipeline.parallel.shared_lock import SharedExclusiveLock
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.schema import Study

load_counts: Counter[str] = Counter()
"""Number of times that this process has loaded a sampler (``generator``) and ``labelers``."""


class ThreadLocalModels(threading.local):
    """Cache of the models that the calling thread has loaded; maps kind to (cache key, model)."""

    def __init__(self) -> None:
        self.loaded: dict[str, tuple[str, Any]] = {}


thread_local_models = ThreadLocalModels()
model_lock = SharedExclusiveLock()
"""Lock that keeps computing threads and threads that load a model apart, on a CPU."""
shared_models: dict[str, tuple[str, Any]] = {}
_device = threading.Lock()


def _shared(study: Study) -> bool:
    """Return whether all threads share one set of models, as they do on a GPU to save memory.

    On a CPU, models are not shared, since concurrent batches are faster there: two batches at once,
    each with its own model and one PyTorch thread, take a seventh less time than the same batches
    in turn with two PyTorch threads.
    """
    return pick_device(study.execution.wanted_device).type != "cpu"


def model_access(study: Study) -> AbstractContextManager[Any]:
    """Return a context manager that gives the calling thread exclusive use of the loaded models.

    No thread of this process loads a model inside the ``with`` block.
    """
    return _device if _shared(study) else model_lock.computing()


def let_other_threads_load() -> None:
    """Let threads of this process that wait to load a model do so before this thread continues.

    Call this function between two steps of a computation inside the block of `model_access`.  The
    second worker of a run would otherwise load its models only after the first one's batch.
    """
    model_lock.give_way()


@contextmanager
def use_models(run: Run) -> Iterator[tuple[PipelineSampler, dict[str, Labeler]]]:
    """Context manager that yields a run's sampler and labelers for exclusive use.

    They are loaded if they are not in the cache.

    Raises:
        UserError: a model is missing, or its weights differ from those with which the run was
            created.
    """
    study = run.study
    with model_access(study):
        attributes = run.attributes
        labelers = get_labelers(study, attributes["labeler_fingerprints"])
        yield get_sampler(study, attributes["model_fingerprint"]), labelers


@contextmanager
def use_pipeline(study: Study, pipeline: Any) -> Iterator[Study]:
    """Context manager in which a study can run with a pipeline object as its model.

    Args:
        study: study whose model and scheduler are replaced by those of the pipeline.
        pipeline: diffusers pipeline; None leaves the study as it is.

    Raises:
        UserError: the pipeline cannot be probed, or the study is of another pipeline.
    """
    if pipeline is None:
        yield study
        return
    source = PipelineSource(pipeline)
    with source.in_use():
        try:
            yield source.study_of(study)
        finally:
            # The user may change the pipeline after the ``with`` block, so remove its sampler from
            # the caches.
            for cache in (shared_models, thread_local_models.loaded):
                cache.pop("generator", None)


def get_or_load(study: Study, kind: str, key: str, load: Callable[[], Any]) -> Any:
    """Return models from the cache, after loading them if they are not in it.

    Args:
        study: study whose device determines the cache: one per thread (CPU) or per process (GPU).
        kind: kind of the models, such as ``labelers``.  The cache has one entry for each kind.
        key: text that identifies the models; an entry with another key is removed
            before the new models are loaded.
        load: function that loads the models.
    """
    cache = shared_models if _shared(study) else thread_local_models.loaded
    if cache.get(kind, ("", None))[0] != key:
        with model_lock.loading():
            # Release the former models first, since the memory may not hold both.  Modules and
            # hooks refer to each other, so that only the collector finds them.
            if cache.pop(kind, None) is not None:
                gc.collect()
            cache[kind] = (key, load())
            load_counts[kind] += 1
    return cache[kind][1]


def get_sampler(study: Study, model: str) -> PipelineSampler:
    """Return the study's image sampler, which the first call loads into the cache.

    Call this function inside the block of `model_access`.

    Args:
        study: study whose model is loaded.
        model: fingerprint of the model's files that was recorded when the run was created.

    Raises:
        UserError: the model's files on this worker have another fingerprint, or do not load.
    """

    def load() -> PipelineSampler:
        source = source_of(study.model)
        fingerprint_here = source.fingerprint()
        if fingerprint_here != model:
            raise UserError(
                f"model.source {study.model.source!r} has fingerprint {fingerprint_here} on this "
                f"worker, but {model} when the run was created. Fix: give every worker the same "
                "weights."
            )
        keep_freed_memory()
        device = pick_device(study.execution.wanted_device)
        return PipelineSampler(source.load(study, device), source.architecture, study)

    return get_or_load(
        study, "generator", f"{study.hash} {model} {study.execution.wanted_device}", load
    )


def get_labelers(study: Study, fingerprints: dict[str, str] | None = None) -> dict[str, Labeler]:
    """Return the study's labelers by property, which the first call loads into the cache.

    Call this function inside the block of `model_access`.

    Args:
        study: study whose labelers are loaded.
        fingerprints: fingerprint of each labeler's files that was recorded when the run was
            created, by property; None takes those of the files as they are now.

    Raises:
        UserError: a labeler's files on this worker have another fingerprint, or do not load.
    """

    specs = labelers_of(study)
    if fingerprints is None:
        known = {prop: check_labeler(prop, spec) for prop, spec in specs.items()}
    else:
        known = fingerprints

    def load() -> dict[str, Labeler]:
        for prop, spec in specs.items():
            fingerprint_here = check_labeler(prop, spec)
            if fingerprint_here != known[prop]:
                raise UserError(
                    f"labels.{prop} has {definition_of(prop, spec)} with fingerprint "
                    f"{fingerprint_here} on this worker, but {known[prop]} when the run was "
                    "created. Fix: give every worker the same files."
                )
        device = pick_device(study.execution.wanted_device)
        return {prop: load_labeler(prop, spec, device) for prop, spec in specs.items()}

    named = " ".join(f"{prop}={r.model_dump_json()} {known.get(prop)}" for prop, r in specs.items())
    return get_or_load(study, "labelers", f"{named} {study.execution.wanted_device}", load)
