"""The TorchScript backend: the same outputs as the network, errors that say what is wrong, and no other file opened."""

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the package torch is not installed")

from service.backends.base import BackendError, DeviceLost, OutOfMemory  # noqa: E402
from service.backends.torchscript import TorchScriptBackend, TorchScriptRuntime, _classify  # noqa: E402
from tasks.contract import Arrays, TensorSpec  # noqa: E402

INPUT = (TensorSpec("x", "float32", (3,)),)
OUTPUTS = (TensorSpec("y", "float32", (2,)), TensorSpec("class", "int64", (), "class"))


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x):
        y = self.head(x)
        return y, y.argmax(dim=1)


class Sums(torch.nn.Module):
    def forward(self, x, y):
        return (x + y,)


class Expands(torch.nn.Module):
    def forward(self, x):
        return x.sum() + torch.zeros([1 << 50]), x.argmax(dim=1)


def file_of(module: torch.nn.Module, *example: torch.Tensor) -> bytes:
    """Return the TorchScript file of a traced module, as training exports it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns since 2.11 that TorchScript is deprecated.
        torch.jit.save(torch.jit.freeze(torch.jit.trace(module.eval(), example)), file)
    return file.getvalue()


def scripted(module: torch.nn.Module) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), file)
    return file.getvalue()


def open_network(device: str = "cpu", threads: int = 2) -> TorchScriptBackend:
    return TorchScriptRuntime(device, threads)(file_of(Network(), torch.zeros(2, 3)), INPUT, OUTPUTS)


ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_outputs_are_those_of_the_network_in_every_batch_size(device: str, size: int) -> None:
    x = np.random.default_rng(0).normal(size=(size, 3)).astype(np.float32)
    with torch.no_grad():
        expected, classes = Network()(torch.from_numpy(x))

    backend = open_network(device)

    for run in (backend.run, backend.run_exclusive):
        outputs = run({"x": x})
        assert list(outputs) == ["y", "class"]
        np.testing.assert_allclose(outputs["y"], expected.numpy(), atol=1e-4)
        np.testing.assert_array_equal(outputs["class"], classes.numpy())


def test_inputs_that_cannot_be_written_to_are_accepted() -> None:
    x = np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32).reshape(1, 3)

    assert open_network().run({"x": x})["y"].shape == (1, 2)


def test_inputs_are_given_in_the_order_of_the_task() -> None:
    class Differs(torch.nn.Module):
        def forward(self, a, b):
            return (a - b,)

    specs = TensorSpec("minuend", "float32", (1,)), TensorSpec("subtrahend", "float32", (1,))
    graph = file_of(Differs(), torch.zeros(1, 1), torch.zeros(1, 1))
    backend = TorchScriptRuntime("cpu")(graph, specs, (TensorSpec("difference", "float32", (1,)),))

    arrays = {"subtrahend": np.array([[2.0]], np.float32), "minuend": np.array([[5.0]], np.float32)}
    assert backend.run(arrays)["difference"].tolist() == [[3.0]]


def test_a_batch_uses_one_core_and_an_exclusive_run_all_of_them_whatever_other_threads_do() -> None:
    backend, arrays = open_network(threads=3), {"x": np.zeros((1, 3), np.float32)}

    def threads_after(run: Callable[[Arrays], Arrays]) -> int:
        run(arrays)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert one.submit(threads_after, backend.run_exclusive).result() == 3
        assert other.submit(threads_after, backend.run).result() == 1
        assert one.submit(torch.get_num_threads).result() == 3
        assert one.submit(threads_after, backend.run).result() == 1


@pytest.mark.parametrize("graph", [b"", b"not a graph", b"PK\x03\x04 cut"], ids=["empty", "text", "cut archive"])
def test_a_file_that_is_no_torchscript_is_rejected(graph: bytes) -> None:
    with pytest.raises(BackendError, match="The graph cannot be loaded"):
        TorchScriptRuntime("cpu")(graph, INPUT, OUTPUTS)


def test_a_graph_with_other_inputs_is_rejected_when_it_is_loaded() -> None:
    graph = file_of(Sums(), torch.zeros(1, 3), torch.zeros(1, 3))

    with pytest.raises(BackendError, match="takes 2 inputs; the task requires x"):
        TorchScriptRuntime("cpu")(graph, INPUT, OUTPUTS)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (OUTPUTS[:1], "returns 2 tensors; the task requires y"),
        ((TensorSpec("y", "float32", (5,)), OUTPUTS[1]), "output y has shape"),
        ((OUTPUTS[0], TensorSpec("class", "uint8", (), "class")), "output class is int64, not uint8"),
    ],
    ids=["count", "shape", "type"],
)
def test_outputs_that_the_task_does_not_declare_fail_the_run(outputs: tuple[TensorSpec, ...], reason: str) -> None:
    backend = TorchScriptRuntime("cpu")(file_of(Network(), torch.zeros(2, 3)), INPUT, outputs)

    with pytest.raises(BackendError, match=reason):
        backend.run({"x": np.zeros((1, 3), np.float32)})


def test_a_run_that_fails_says_why_and_the_next_one_works() -> None:
    backend = open_network()

    with pytest.raises(BackendError, match="The graph failed") as caught:
        backend.run({"x": np.zeros((1, 4), np.float32)})

    assert type(caught.value) is BackendError
    assert backend.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 2)


def test_a_run_that_does_not_fit_into_memory_is_out_of_memory() -> None:
    backend = TorchScriptRuntime("cpu")(scripted(Expands()), INPUT, OUTPUTS)

    with pytest.raises(OutOfMemory, match="memory"):
        backend.run({"x": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be late",
            DeviceLost,
        ),
        ("CUDA error: device-side assert triggered", DeviceLost),
        ("CUDA error: out of memory", OutOfMemory),
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB", OutOfMemory),
        ("mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)", BackendError),
    ],
)
def test_errors_of_a_device_are_told_from_those_of_a_run(message: str, kind: type[BackendError]) -> None:
    assert type(_classify(RuntimeError(message), lambda: False)) is kind


def test_cuda_that_is_requested_but_not_there_is_an_error_with_the_cure() -> None:
    runtime = TorchScriptRuntime("cuda", has_cuda=lambda: False, has_gpu=lambda: False)

    with pytest.raises(BackendError, match=r"CUDA was requested, but .* Use --device auto or cpu"):
        runtime.check()


def test_a_gpu_that_torch_cannot_use_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    TorchScriptRuntime("auto", has_cuda=lambda: False, has_gpu=lambda: True).check()

    assert "a GPU is visible but not used" in caplog.text


def test_the_backend_describes_itself() -> None:
    backend = open_network()

    assert (backend.device, backend.provider, backend.precision) == ("cpu", "TorchScript", "float32")
    assert (backend.memory_in_use() or 0) > 0
    assert (backend.memory_free() or 0) > 0
    backend.release()
