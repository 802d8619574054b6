"""Models and labelers in memory: one for each CPU thread, one for a GPU, checked weights."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline import generate, model_cache
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.units import GENERATE


def test_get_labelers_refuses_weights_with_another_fingerprint(finished_run, monkeypatch):
    monkeypatch.setattr(model_cache, "check_labeler", lambda prop, spec: "another")
    monkeypatch.setattr(model_cache, "thread_local_models", model_cache.ThreadLocalModels())
    with pytest.raises(UserError, match=r"labels\.foreground has weights with fingerprint another"):
        model_cache.get_labelers(
            finished_run.study, finished_run.attributes["labeler_fingerprints"]
        )


def test_get_labelers_loads_again_only_when_a_fingerprint_has_changed(finished_run, monkeypatch):
    """Without recorded fingerprints, those of the files as they are now count."""
    monkeypatch.setattr(model_cache, "thread_local_models", model_cache.ThreadLocalModels())
    recorded = finished_run.attributes["labeler_fingerprints"]
    first = model_cache.get_labelers(finished_run.study)
    assert model_cache.get_labelers(finished_run.study, recorded) is first
    monkeypatch.setattr(model_cache, "check_labeler", lambda prop, spec: f"new {prop}")
    assert model_cache.get_labelers(finished_run.study) is not first


def test_cpu_threads_load_a_model_each_and_give_the_bytes_of_one_thread(finished_run, tmp_path):
    """Each has a model of its own on the CPU, and they generate and label at the same time."""
    run = prepare_run(finished_run.study, str(tmp_path))
    both = threading.Barrier(2, timeout=60)

    def unit(batch):
        both.wait()
        generate.generate_batch(run.url, batch)
        both.wait()
        label_batch(run.url, batch)
        both.wait()
        return threading.get_ident()

    before = model_cache.load_counts["generator"]
    with ThreadPoolExecutor(2) as pool:
        batches = range(len(run.study.batches(run.n_stored)) // 2 * 2)
        assert len(set(pool.map(unit, batches))) == 2
    assert model_cache.load_counts["generator"] == before + 2
    rest = {"sample": slice(0, 4 * len(batches))}
    for group, name in (
        ("step_images", "clean"),
        ("labels_clean", "depth"),
        ("labels", "foreground"),
    ):
        np.testing.assert_array_equal(
            run.read(group, name, **rest), finished_run.read(group, name, **rest)
        )


def test_the_former_model_is_released_before_the_next_is_loaded(finished_run, tmp_path):
    """A sampler, whose modules, hooks and scheduler refer to each other."""
    run, study = prepare_run(finished_run.study, str(tmp_path)), finished_run.study
    denoisers, alive = [], []
    with model_cache.model_access(study):
        sampler = model_cache.get_sampler(study, run.attributes["model_fingerprint"])
        denoisers.append(weakref.ref(sampler.pipeline.unet))
        del sampler
        load = lambda: alive.append(denoisers[0]() is not None)  # noqa: E731
        model_cache.get_or_load(study, "generator", "another", load)
        model_cache.get_or_load(study, "generator", "", load)  # the next test loads its own
    assert alive == [False, False]


def test_a_thread_loads_its_model_between_the_steps_of_another_thread(
    finished_run, tmp_path, monkeypatch
):
    """The second thread does not wait until the first one has generated its batch."""
    run = prepare_run(finished_run.study, str(tmp_path))
    at_a_step, done_when_loaded = threading.Event(), []

    def load():
        done_when_loaded.append(run.progress.is_done(GENERATE, 0))
        return "model"

    def let_load():
        at_a_step.set()
        deadline = time.monotonic() + 60
        while not (done_when_loaded or model_cache.model_lock.waiting):
            assert time.monotonic() < deadline
            time.sleep(0.01)  # polling for the other thread, bounded by the deadline
        model_cache.let_other_threads_load()

    monkeypatch.setattr(generate, "let_other_threads_load", let_load)
    with ThreadPoolExecutor(2) as pool:
        batch = pool.submit(generate.generate_batch, run.url, 0)
        assert at_a_step.wait(60)
        loading = pool.submit(model_cache.get_or_load, run.study, "of a test", "key", load)
        assert loading.result(60) == "model"
        batch.result(60)
    assert done_when_loaded == [False]
    assert run.progress.is_done(GENERATE, 0)


def test_gpu_threads_share_one_model_and_exclude_each_other(finished_run, monkeypatch):
    class Cuda:
        type = "cuda"

    monkeypatch.setattr(model_cache, "pick_device", lambda wanted: Cuda)
    monkeypatch.setattr(model_cache, "shared_models", {})
    study, made = finished_run.study, []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: made.append(model_cache.get_or_load(study, "generator", "key", object))
        )
        thread.start()
        thread.join(30)
    assert made[0] is made[1]
    with model_cache.model_access(study):
        assert not model_cache.model_access(study).acquire(blocking=False)
