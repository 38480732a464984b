"""The fake backend computes with a function, and fails as its faults say."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.backends.fake import FakeBackend, Fault, Gate, backend_error, device_lost, failing, out_of_memory, slow
from tasks.contract import Arrays, Run


def double(arrays: Arrays) -> Arrays:
    return {"y": 2 * arrays["x"]}


def inputs(*values: float) -> Arrays:
    return {"x": np.array(values)}


def has_seven(arrays: Arrays) -> bool:
    return bool((arrays["x"] == 7).any())


def test_outputs_are_those_of_the_function() -> None:
    backend = FakeBackend(double)

    assert backend.run(inputs(1, 2))["y"].tolist() == [2, 4]
    assert backend.run_exclusive(inputs(3))["y"].tolist() == [6]
    assert (backend.device, backend.memory_in_use(), backend.memory_free()) == ("fake", None, None)


@pytest.mark.parametrize(
    ("make_fault", "error"),
    [
        (backend_error, BackendError),
        (out_of_memory, OutOfMemory),
        (device_lost, DeviceLost),
        (lambda when: failing(lambda: ValueError("out of order"), when), ValueError),
    ],
)
def test_fault_fails_the_runs_that_meet_its_condition(
    make_fault: Callable[[Callable[[Arrays], bool]], Fault], error: type[Exception]
) -> None:
    backend = FakeBackend(double, faults=[make_fault(has_seven)])

    for run in (backend.run, backend.run_exclusive):
        with pytest.raises(error):
            run(inputs(1, 7))
        assert run(inputs(1))["y"].tolist() == [2]


def test_first_fault_is_the_outermost() -> None:
    def add_one(arrays: Arrays, run: Run) -> Arrays:
        return {name: array + 1 for name, array in run(arrays).items()}

    def negate(arrays: Arrays, run: Run) -> Arrays:
        return {name: -array for name, array in run(arrays).items()}

    backend = FakeBackend(double, faults=[add_one, negate, slow(0.0)])

    assert backend.run(inputs(5))["y"].tolist() == [-9]


def test_gate_blocks_runs_until_it_is_opened() -> None:
    gate, done = Gate(has_seven), list[list[float]]()
    backend = FakeBackend(double, faults=[gate])
    blocked = threading.Thread(target=lambda: done.append(backend.run(inputs(7))["y"].tolist()))
    blocked.start()

    passed = backend.run(inputs(1))["y"].tolist()
    before = list(done)
    gate.open()
    blocked.join()

    assert (passed, before, done) == ([2], [], [[14]])
    assert backend.run(inputs(7))["y"].tolist() == [14]


def test_gate_can_be_closed_again() -> None:
    gate = Gate(timeout_s=0.0)
    backend = FakeBackend(double, faults=[gate])
    gate.open()
    gate.close()

    assert not gate.is_open
    with pytest.raises(TimeoutError):
        backend.run(inputs(7))


def test_wrapped_backend_is_used_for_everything_but_the_faults() -> None:
    released = list[int]()
    inner = FakeBackend(
        double,
        function_exclusive=lambda arrays: {"y": 3 * arrays["x"]},
        device="cpu",
        in_use=lambda: 5,
        free=lambda: 6,
        on_release=lambda: released.append(1),
    )
    backend = FakeBackend.wrap(inner, [out_of_memory(has_seven)])
    backend.release()

    assert backend.run(inputs(1))["y"].tolist() == [2]
    assert backend.run_exclusive(inputs(1))["y"].tolist() == [3]
    assert (backend.device, backend.memory_in_use(), backend.memory_free(), released) == ("cpu", 5, 6, [1])
    with pytest.raises(OutOfMemory):
        backend.run(inputs(7))
