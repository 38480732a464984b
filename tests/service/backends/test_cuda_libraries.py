"""A GPU that is requested and cannot be used: the server says which library is missing, and does not serve without."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from service.backends.base import BackendError
from service.backends.cuda_libraries import explain_missing, gpu_is_visible, missing_cuda_libraries
from service.backends.onnx import OnnxRuntime
from service.backends.onnx_precision import precision_of
from tests.tiny.tabular import CREDIT, credit_graph

PROVIDER = "libonnxruntime_providers_cuda.so"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def folder_with_provider(tmp_path: Path) -> Path:
    (tmp_path / PROVIDER).write_bytes(b"")
    return tmp_path


def not_found(name: str) -> OSError:
    return OSError(f"{name}: cannot open shared object file: No such file or directory")


def runtime_on_cpu(device: Any, missing: Sequence[str] = (), *, has_gpu: bool = True) -> OnnxRuntime:
    """ONNX Runtime with a CUDA provider that falls back to the CPU, as it does if a library is missing."""

    def open_session(graph: bytes, options: Any, providers: Any) -> ort.InferenceSession:
        assert device == "cpu" or providers[0][0] == CUDA
        return ort.InferenceSession(graph, options, providers=[CPU])

    return OnnxRuntime(device, 1, open_session, lambda: [CUDA, CPU], lambda: list(missing), lambda: has_gpu)


def test_a_library_that_the_provider_needs_and_the_loader_does_not_find_is_named(tmp_path: Path) -> None:
    def load(name: str) -> None:
        if name.endswith(PROVIDER):
            raise not_found("libcublasLt.so.13")

    assert missing_cuda_libraries(folder_with_provider(tmp_path), load) == ["libcublasLt.so.13"]


def test_a_library_that_is_opened_only_when_it_is_needed_is_named_too(tmp_path: Path) -> None:
    def load(name: str) -> None:
        if name.startswith("libcudnn"):
            raise not_found(name)

    assert missing_cuda_libraries(folder_with_provider(tmp_path), load) == ["libcudnn.so.9"]


def test_without_the_provider_the_build_is_the_one_for_cpus(tmp_path: Path) -> None:
    (missing,) = missing_cuda_libraries(tmp_path)

    assert missing == PROVIDER
    assert "install onnxruntime-gpu" in explain_missing([missing])


def test_the_system_loader_refuses_a_damaged_provider_and_its_words_are_reported(tmp_path: Path) -> None:
    (first, *_) = missing_cuda_libraries(folder_with_provider(tmp_path))

    assert first.startswith(f"{PROVIDER} (")
    assert "too short" in first


@pytest.mark.parametrize(
    ("library", "advice"), [("libcuda.so.1", "driver"), ("libcudnn.so.9", "cuDNN"), ("libcurand.so.10", "pip install")]
)
def test_each_missing_library_comes_with_the_way_to_get_it(library: str, advice: str) -> None:
    text = explain_missing([library])

    assert text.startswith(f"{library} is missing; ")
    assert advice in text


def test_a_requested_gpu_that_falls_back_to_the_cpu_is_refused_with_the_missing_library() -> None:
    runtime = runtime_on_cpu("cuda", ["libcudnn.so.9"])

    with pytest.raises(BackendError, match=r"cannot use it. libcudnn.so.9 is missing; cuDNN: pip install"):
        runtime.check()


def test_a_graph_that_falls_back_to_the_cpu_is_not_served_on_a_requested_gpu() -> None:
    runtime = runtime_on_cpu("cuda", ["libcudnn.so.9"])

    with pytest.raises(BackendError, match=r"this graph would run on the CPU. libcudnn.so.9 is missing"):
        runtime(credit_graph(), CREDIT.inputs, CREDIT.outputs)


def test_a_requested_gpu_without_a_missing_library_is_refused_with_other_causes() -> None:
    with pytest.raises(BackendError, match="driver may be too old"):
        runtime_on_cpu("cuda").check()


def test_a_visible_gpu_that_is_not_used_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        runtime_on_cpu("auto", ["libcublas.so.13"]).check()

    (record,) = caplog.records
    assert record.message == "a GPU is visible but not used"
    assert "libcublas.so.13 is missing" in record.fields["reason"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("device", "has_gpu"), [("auto", False), ("cpu", True)])
def test_nothing_is_logged_without_a_gpu_or_if_the_cpu_was_requested(
    device: str, has_gpu: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runtime_on_cpu(device, ["libcublas.so.13"], has_gpu=has_gpu).check()

    assert caplog.records == []


def test_a_backend_states_the_provider_that_its_session_really_uses() -> None:
    backend = runtime_on_cpu("auto", has_gpu=False)(credit_graph(), CREDIT.inputs, CREDIT.outputs)

    assert backend.provider == CPU
    assert backend.device == "cpu"
    assert backend.precision == "float32"


def test_a_gpu_is_visible_by_the_device_file_of_its_driver(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    before = gpu_is_visible(tmp_path)
    (tmp_path / "dev" / "nvidia0").touch()

    assert not before
    assert gpu_is_visible(tmp_path)


def test_the_precision_of_16_bit_weights_is_read_from_the_file() -> None:
    graph = Path(__file__).parents[3] / "models" / "adult"
    content = max(graph.glob("*/model.onnx")).read_bytes()

    assert precision_of(content) == "float16"


@pytest.mark.parametrize("content", [b"", b"\x3a\xff", b"\x07", b"no graph at all"])
def test_the_precision_of_what_is_no_graph_is_unknown(content: bytes) -> None:
    assert precision_of(content) == "unknown"
