"""`SharedExclusiveLock`: threads compute side by side and load alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ldmprobe_core.pipeline.parallel.shared_lock import SharedExclusiveLock

LIMIT_S = 30


@pytest.fixture
def lock():
    return SharedExclusiveLock()


def wait_until_one_waits(lock):
    deadline = time.monotonic() + LIMIT_S
    while lock.waiting != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # polling for the other thread, bounded by the deadline


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_shared_lock_lets_threads_compute_together(lock):
    both = threading.Barrier(2, timeout=LIMIT_S)

    def compute():
        with lock.computing():
            both.wait()  # neither comes past here alone

    threads = [in_thread(compute) for _ in range(2)]
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)


def test_shared_lock_loading_waits_for_computing_and_has_priority(lock):
    computing, let_go, order = threading.Event(), threading.Event(), []

    def compute():
        with lock.computing():
            computing.set()
            assert let_go.wait(LIMIT_S)
            order.append("computed")

    def load():
        with lock.loading():
            order.append("loaded")

    def compute_later():
        with lock.computing():
            order.append("computed later")

    threads = [in_thread(compute)]
    assert computing.wait(LIMIT_S)
    threads.append(in_thread(load))
    wait_until_one_waits(lock)
    threads.append(in_thread(compute_later))  # after the one that waits to load
    let_go.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert order == ["computed", "loaded", "computed later"]


def test_shared_lock_loading_is_exclusive_among_computing_threads(lock):
    inside, most = 0, 0
    started = threading.Barrier(2, timeout=LIMIT_S)

    def work():
        nonlocal inside, most
        with lock.computing():
            started.wait()
            with lock.loading():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [in_thread(work) for _ in range(2)]
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1
    assert lock.n_computing == 0


def test_shared_lock_computing_is_reentrant_while_another_thread_waits_to_load(lock):
    inside, again = threading.Event(), threading.Event()

    def compute():
        with lock.computing():
            inside.set()
            wait_until_one_waits(lock)
            with lock.computing():
                again.set()

    def load():
        with lock.loading():
            assert again.is_set()

    threads = [in_thread(compute)]
    assert inside.wait(LIMIT_S)
    threads.append(in_thread(load))
    for thread in threads:
        thread.join(LIMIT_S)
    assert again.is_set()
    assert not any(thread.is_alive() for thread in threads)


def test_shared_lock_computing_thread_gives_way_to_one_that_loads(lock):
    computing, loaded = threading.Event(), threading.Event()
    computing_while_loading = []

    def compute():
        with lock.computing():
            computing.set()
            wait_until_one_waits(lock)
            lock.give_way()
            # The other thread has loaded by now, although this computation has not ended.
            assert loaded.is_set()
            assert lock.n_computing == 1

    def load():
        with lock.loading():
            computing_while_loading.append(lock.n_computing)
            loaded.set()

    with ThreadPoolExecutor(2) as pool:
        computation = pool.submit(compute)
        assert computing.wait(LIMIT_S)
        pool.submit(load).result(LIMIT_S)
        computation.result(LIMIT_S)
    assert computing_while_loading == [0]


def test_shared_lock_gives_way_only_if_a_thread_waits_and_the_caller_computes(lock):
    lock.give_way()
    assert lock.n_computing == 0
    with lock.computing():
        lock.give_way()
        assert lock.n_computing == 1
    with lock.loading():
        lock.give_way()
    assert lock.n_computing == 0
