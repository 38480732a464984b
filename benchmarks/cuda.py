"""`python -m benchmarks.cuda`: ways of running a graph on a GPU that the service does not use, against the one it uses.

The ways: inputs and outputs in buffers that stay on the device (IO binding), captured CUDA graphs, and TensorRT in 16
bits with one engine per batch size. Copies between host and device are included, since every request needs them. Only
what this build of ONNX Runtime contains is measured; `--device cpu` tries the program out without a GPU.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.alternatives import example_arrays, time_in_turn
from benchmarks.machine import describe_machine
from benchmarks.serving import newest_version
from service.backends.onnx import OnnxRuntime
from tasks.contract import Arrays, Run
from tasks.manifest import MODEL, read_manifest

_BATCH_SIZES = (1, 8, 64)


def measure_ways(models: Path, names: tuple[str, ...], device: str) -> list[dict[str, Any]]:
    """Return for each model, batch size and way the milliseconds of a run, and those of a run of the service."""
    rows = []
    for name in names:
        folder = newest_version(models / name)
        task, graph = read_manifest(folder).load_task(folder), (folder / MODEL).read_bytes()
        backend = OnnxRuntime("cuda" if device == "cuda" else "cpu")(graph, task.inputs, task.outputs)
        sample = example_arrays(task, folder)
        for size in _BATCH_SIZES:
            arrays = {key: np.repeat(array, size, axis=0) for key, array in sample.items()}
            expected = backend.run_exclusive(arrays)
            for way, run in _ways(graph, arrays, expected, device):
                actual = run(arrays)
                served_s, way_s = time_in_turn(partial(backend.run_exclusive, arrays), partial(run, arrays))
                rows.append(
                    {
                        "model": name,
                        "batch": size,
                        "way": way,
                        "served_ms": served_s * 1e3,
                        "ms": way_s * 1e3,
                        "largest_difference": max(
                            float(np.abs(expected[spec.name].astype(float) - actual[spec.name]).max())
                            for spec in task.outputs
                        ),
                    }
                )
    return rows


def _ways(graph: bytes, arrays: Arrays, outputs: Arrays, device: str) -> Iterator[tuple[str, Run]]:
    """Yield the ways that are available for batches with inputs and outputs of these shapes."""
    if device == "cpu":
        yield "IO binding", _bound_run(graph, arrays, outputs, ["CPUExecutionProvider"], device)
        return
    cuda = {"cudnn_conv_algo_search": "HEURISTIC"}
    yield "IO binding", _bound_run(graph, arrays, outputs, [("CUDAExecutionProvider", cuda)], device)
    captured = cuda | {"enable_cuda_graph": "1"}
    yield "CUDA graph", _bound_run(graph, arrays, outputs, [("CUDAExecutionProvider", captured)], device)
    if "TensorrtExecutionProvider" in ort.get_available_providers():
        shapes = ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in arrays.items())
        profile = {f"trt_profile_{edge}_shapes": shapes for edge in ("min", "opt", "max")}
        tensorrt = ("TensorrtExecutionProvider", {"trt_fp16_enable": "1"} | profile)
        yield "TensorRT", _bound_run(graph, arrays, outputs, [tensorrt, ("CUDAExecutionProvider", cuda)], device)


def _bound_run(graph: bytes, arrays: Arrays, outputs: Arrays, providers: list[Any], device: str) -> Run:
    """Return a function that copies the inputs into buffers on the device, runs the graph, and copies its outputs.

    Buffers keep their addresses, which captured graphs need.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=providers)
    binding = session.io_binding()
    inputs = {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in arrays.items()}
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(np.zeros_like(array), device, 0))

    def run(batch: Arrays) -> Arrays:
        for name, array in batch.items():
            inputs[name].update_inplace(array)
        session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=True))

    return run


def main() -> int:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", default=("clothing", "camvid", "adult"), metavar="MODEL")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models; default: models")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the JSON file")
    options = parser.parse_args()
    rows = measure_ways(options.models, tuple(options.only), options.device)
    print("| model | batch | way | as served, ms | this way, ms | times as fast | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['batch']} | {row['way']} | {row['served_ms']:.3f} | {row['ms']:.3f} | "
            f"{row['served_ms'] / row['ms']:.2f} | {row['largest_difference']:.4f} |"
        )
    if options.device == "cuda":
        options.results.mkdir(parents=True, exist_ok=True)
        results = {"measured": describe_machine(), "rows": rows}
        (options.results / "cuda.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
