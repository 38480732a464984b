"""Whether a GPU is there, and which library is missing if ONNX Runtime cannot use it.

ONNX Runtime falls back to the CPU if the library of its CUDA provider cannot be loaded, and prints the reason at best.
The system's loader names the first missing library in its error, so that loading the provider again tells.
"""

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

Load = Callable[[str], object]
"""Loads a shared library by name or path. Raises OSError."""
_PROVIDER, _SHARED = "libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"
_OPENED_LATER = ("libcudnn.so.9",)
"""Libraries that the provider opens when it needs them, so that loading it does not tell that they are missing."""
_MISSING = re.compile(r"(\S+\.so(?:\.\d+)*): cannot open shared object file")
_PACKAGES = {
    "libcuda.so": "it belongs to the NVIDIA driver: install that on the machine, and give the container a GPU "
    "(on Kubernetes the resource nvidia.com/gpu, with Docker --gpus all)",
    "libcudnn": "cuDNN: pip install nvidia-cudnn-cu13 (or -cu12), as the version of onnxruntime-gpu requires",
    "libcublas": "cuBLAS: pip install 'onnxruntime-gpu[cuda,cudnn]'",
}
_OTHERWISE = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def gpu_is_visible(root: Path = Path("/")) -> bool:
    """Return whether this machine or container has an NVIDIA GPU: the device files that the driver creates."""
    return any((root / "dev").glob("nvidia[0-9]*"))


def _load_globally(name: str) -> object:
    return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def missing_cuda_libraries(folder: Path, load: Load = _load_globally) -> list[str]:
    """Return the libraries that keep the CUDA provider of ONNX Runtime from working; none if none is known.

    Args:
        folder: that contains the libraries of ONNX Runtime.
        load: loads a library.
    """
    if not (folder / _PROVIDER).exists():
        return [_PROVIDER]
    paths = [str(folder / name) for name in (_SHARED, _PROVIDER) if (folder / name).exists()]
    missing = dict.fromkeys(_failures([*paths, *_OPENED_LATER], load))
    return list(missing)


def _failures(names: list[str], load: Load) -> Iterator[str]:
    for name in names:
        try:
            load(name)
        except OSError as error:
            found = _MISSING.search(str(error))
            yield found[1] if found else f"{Path(name).name} ({error})"


def explain_missing(libraries: list[str]) -> str:
    """Return a sentence for each missing library that says how to get it; empty if there are none."""
    return " ".join(f"{name} is missing; {_how_to_get(name)}." for name in libraries)


def _how_to_get(name: str) -> str:
    if name == _PROVIDER:
        return "this is the build of ONNX Runtime for CPUs: install onnxruntime-gpu instead of onnxruntime"
    return next((how for prefix, how in _PACKAGES.items() if name.startswith(prefix)), _OTHERWISE)
