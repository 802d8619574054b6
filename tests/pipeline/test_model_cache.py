"""Threads of a worker: they compute side by side, and load alone."""

import threading

import pytest

from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.model_cache import SharedExclusiveLock

LIMIT_S = 30


@pytest.fixture
def turns(monkeypatch):
    turns = SharedExclusiveLock()
    monkeypatch.setattr(model_cache, "thread_local_models", model_cache.ThreadLocalModels())
    return turns


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_threads_compute_side_by_side(turns):
    both = threading.Barrier(2, timeout=LIMIT_S)

    def compute():
        with turns.computing():
            both.wait()  # neither comes past here alone

    threads = [in_thread(compute) for _ in range(2)]
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)


def test_one_that_loads_waits_for_those_that_compute_and_holds_others_up(turns):
    computing, let_go, order = threading.Event(), threading.Event(), []

    def compute():
        with turns.computing():
            computing.set()
            assert let_go.wait(LIMIT_S)
            order.append("computed")

    def load():
        with turns.loading():
            order.append("loaded")

    def compute_later():
        with turns.computing():
            order.append("computed later")

    threads = [in_thread(compute)]
    assert computing.wait(LIMIT_S)
    threads.append(in_thread(load))
    with turns._changed:
        assert turns._changed.wait_for(lambda: turns._waiting == 1, LIMIT_S)
    threads.append(in_thread(compute_later))  # after the one that waits to load
    let_go.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert order == ["computed", "loaded", "computed later"]


def test_two_that_are_about_to_compute_load_one_after_the_other(turns):
    inside, most = 0, 0
    started = threading.Barrier(2, timeout=LIMIT_S)

    def work():
        nonlocal inside, most
        with turns.computing():
            started.wait()
            with turns.loading():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [in_thread(work) for _ in range(2)]
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1
    assert turns._computing == 0


def test_a_thread_that_is_inside_goes_in_again_though_somebody_waits_to_load(turns):
    inside, again = threading.Event(), threading.Event()

    def compute():
        with turns.computing():
            inside.set()
            with turns._changed:
                assert turns._changed.wait_for(lambda: turns._waiting == 1, LIMIT_S)
            with turns.computing():
                again.set()

    def load():
        with turns.loading():
            assert again.is_set()

    threads = [in_thread(compute)]
    assert inside.wait(LIMIT_S)
    threads.append(in_thread(load))
    for thread in threads:
        thread.join(LIMIT_S)
    assert again.is_set()
    assert not any(thread.is_alive() for thread in threads)
