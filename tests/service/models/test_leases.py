"""Leases: what a version holds is freed once, after the version is retired and nobody uses it."""

import threading

from service.models.leases import Leases


def test_a_retired_version_without_leases_ends_at_once() -> None:
    ended: list[str] = []
    leases = Leases(lambda: ended.append("ended"))

    leases.retire()
    leases.retire()

    assert ended == ["ended"]


def test_a_retired_version_ends_with_its_last_lease_and_grants_no_other() -> None:
    ended: list[str] = []
    leases = Leases(lambda: ended.append("ended"))
    first, second = leases.try_acquire(), leases.try_acquire()

    leases.retire()
    third = leases.try_acquire()
    leases.release()
    before = list(ended)
    leases.release()

    assert (first, second, third) == (True, True, False)
    assert (before, ended) == ([], ["ended"])


def test_a_lease_ends_with_its_block_even_if_that_fails() -> None:
    ended: list[str] = []
    leases = Leases(lambda: ended.append("ended"))
    leases.try_acquire()
    leases.retire()

    try:
        with leases:
            raise KeyError
    except KeyError:
        pass

    assert ended == ["ended"]


def test_a_version_in_use_by_many_threads_ends_once() -> None:
    ended: list[str] = []
    leases = Leases(lambda: ended.append("ended"))
    is_running = threading.Barrier(5)

    def use() -> None:
        is_running.wait()
        while leases.try_acquire():
            with leases:
                assert not ended

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    is_running.wait()
    leases.retire()
    for thread in threads:
        thread.join()

    assert ended == ["ended"]
