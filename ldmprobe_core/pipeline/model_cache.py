"""What a worker has loaded, a generator and labelers, and who may use them when."""

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
from ldmprobe_core.models.loading import load_pipeline
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.weights import fingerprint, model_folder
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.schema import Study

load_counts: Counter[str] = Counter()
"""How often this process has loaded a generator and labelers."""


class ThreadLocalModels(threading.local):
    """What a thread has loaded for itself."""

    def __init__(self) -> None:
        self.loaded: dict[str, tuple[str, Any]] = {}
        self.inside = False  # `SharedExclusiveLock.computing`


class SharedExclusiveLock:
    """Threads that compute do so side by side; one that loads is alone.

    Libraries change what is global while they load, torch's default dtype among it, so that a
    thread that computed meanwhile would come to other numbers.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing, self._waiting, self._loading = 0, 0, False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Whoever waits to load goes first, but for a thread that is inside already."""
        if thread_local_models.inside:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not (self._loading or self._waiting))
            self._computing += 1
        thread_local_models.inside = True
        try:
            yield
        finally:
            thread_local_models.inside = False
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Also for a thread that is about to compute: it steps back meanwhile."""
        mine = int(thread_local_models.inside)
        with self._changed:
            self._computing -= mine
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._loading or self._computing))
            self._waiting -= 1
            self._loading = True
        try:
            yield
        finally:
            with self._changed:
                self._loading = False
                self._changed.notify_all()
                if mine:
                    self._changed.wait_for(lambda: not (self._loading or self._waiting))
                    self._computing += mine


thread_local_models = ThreadLocalModels()
_model_lock = SharedExclusiveLock()
shared_models: dict[str, tuple[str, Any]] = {}
_device = threading.Lock()


def _shared(study: Study) -> bool:
    """All threads of the process take turns with one model: on a GPU, whose memory is dear.

    On the CPU every worker thread has a model of its own, as every worker process has: two batches
    at a time on one thread each take a seventh less time than one after the other on two.
    """
    return pick_device(study.execution.wanted_device).type != "cpu"


def model_access(study: Study) -> AbstractContextManager[Any]:
    """Inside, what was loaded for a study is the caller's alone, and nothing else is loading."""
    return _device if _shared(study) else _model_lock.computing()


@contextmanager
def use_models(run: Run) -> Iterator[tuple[PipelineSampler, dict[str, Labeler]]]:
    """The generator and labelers of a run, for one caller at a time."""
    study = run.study
    with model_access(study):
        attributes = run.attributes()
        labelers = get_labelers(study, attributes["labeler_fingerprints"])
        yield get_sampler(study, attributes["model_fingerprint"]), labelers


def _get_or_load(study: Study, kind: str, key: str, load: Callable[[], Any]) -> Any:
    """What a worker loads, it loads once; another study's model replaces the last."""
    mine = shared_models if _shared(study) else thread_local_models.loaded
    if mine.get(kind, ("", None))[0] != key:
        with _model_lock.loading():
            mine[kind] = (key, load())
            load_counts[kind] += 1
    return mine[kind][1]


def get_sampler(study: Study, model: str) -> PipelineSampler:
    """The worker's loaded model; call it inside `model_access`.

    Args:
        model: fingerprint that the run was begun with.

    Raises:
        UserError: the model's files here have another.
    """

    def load() -> PipelineSampler:
        found = fingerprint(model_folder(study.model))
        if found != model:
            raise UserError(
                f"model.source {study.model.source!r} has fingerprint {found} on this worker, and "
                f"the run was begun with {model}: give every worker the same weights"
            )
        keep_freed_memory()
        device = pick_device(study.execution.wanted_device)
        architecture = detect_architecture(model_folder(study.model))
        return PipelineSampler(load_pipeline(study, device), architecture, study)

    return _get_or_load(
        study, "generator", f"{study.hash} {model} {study.execution.wanted_device}", load
    )


def get_labelers(study: Study, fingerprints: dict[str, str] | None = None) -> dict[str, Labeler]:
    """The worker's loaded labelers; call it inside `model_access`.

    Args:
        fingerprints: those that the run was begun with; None where it is only being begun.

    Raises:
        UserError: their files here have others.
    """

    def load() -> dict[str, Labeler]:
        for prop, spec in labelers_of(study).items():
            found = check_labeler(prop, spec)
            if fingerprints is not None and found != fingerprints[prop]:
                raise UserError(
                    f"labels.{prop} has weights with fingerprint {found} on this worker, and the "
                    f"run was begun with {fingerprints[prop]}: give every worker the same"
                )
        device = pick_device(study.execution.wanted_device)
        return {prop: load_labeler(prop, r, device) for prop, r in labelers_of(study).items()}

    named = " ".join(f"{prop}={r.model_dump_json()}" for prop, r in labelers_of(study).items())
    known = " ".join((fingerprints or {}).values())
    return _get_or_load(study, "labelers", f"{named} {known} {study.execution.wanted_device}", load)
