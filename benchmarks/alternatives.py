"""`python -m benchmarks.alternatives`: libraries that the project does not use, against those that it does.

Decoders of JPEG (simplejpeg, PyTurboJPEG, pyvips) against Pillow, and OpenVINO against ONNX Runtime on a CPU. Those
that are installed are measured, in process and call by call in turn with what is used now (A B A B). To install them:

    pip install simplejpeg pyvips[binary] PyTurboJPEG openvino      # PyTurboJPEG also needs the system's libturbojpeg
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.large_images import make_photo
from benchmarks.machine import describe_machine
from benchmarks.serving import example_request, newest_version
from service.backends.cores import available_cores
from service.backends.onnx import OnnxRuntime
from tasks._image_files.image_file import ImageFile
from tasks._image_files.read import read_image_file
from tasks._images import DecodedImage
from tasks.contract import Arrays, Limits, Run, Task
from tasks.goldens import read_goldens
from tasks.manifest import MODEL, read_manifest

Decode = Callable[[ImageFile, int], Image.Image]
"""Decodes a JPEG, at a fraction of its size if both sides remain at least this long."""
_PHOTOS_OF = "clothing"
_SECONDS = 2.0
_MIN_CALLS = 7


def measure_decoders(models: Path, photos: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for each photo and decoder what a request gains by it, in processor time of one core.

    A request is: the checks of the file, decoding, resizing, the graph, and the answer as an object. HTTP is left out,
    so that a request of the service gains less. Colours, orientation and damaged files are left out as well: the
    alternative would need code for them.
    """
    folder = newest_version(models / _PHOTOS_OF)
    task = read_manifest(folder).load_task(folder)
    backend = OnnxRuntime("cpu", 1)((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    _, example = example_request(folder, _PHOTOS_OF)
    contents = {str(path): path.read_bytes() for path in photos} or {"the example": example}
    contents |= {"12 MP, smooth": make_photo(example, 0.0), "12 MP, noisy": make_photo(example, 6.0)}
    rows = []
    for name, content in contents.items():
        request = task.parse({"image": content}, Limits())
        samples = task.preprocess(task.decode(request, Limits()))

        def ours(request: Any = request) -> Any:
            return task.preprocess(task.decode(request, Limits()))

        def rest(samples: Any = samples, request: Any = request) -> Any:
            return task.postprocess(backend.run(samples.arrays), samples, request)

        for decoder, decode in _decoders():
            theirs = _with_decoder(task, content, decode)
            difference = np.abs(ours().arrays["image"].astype(int) - theirs().arrays["image"]).mean()
            ours_s, theirs_s, rest_s = time_in_turn(ours, theirs, rest, clock=time.process_time)
            rows.append(
                {
                    "photo": name,
                    "kilobytes": len(content) / 1000,
                    "decoder": decoder,
                    "pillow_ms": ours_s * 1e3,
                    "ms": theirs_s * 1e3,
                    "rest_ms": rest_s * 1e3,
                    "gain": (ours_s - theirs_s) / (theirs_s + rest_s),
                    "mean_difference": float(difference),
                }
            )
    return rows


def _with_decoder(task: Task, content: bytes, decode: Decode) -> Callable[[], Any]:
    side = max(length for length in task.inputs[0].shape if isinstance(length, int))

    def read() -> Any:
        file = read_image_file(content, max_pixels=Limits().pixels)
        return task.preprocess(DecodedImage(decode(file, side), file.width, file.height))

    return read


def _decoders() -> Iterator[tuple[str, Decode]]:
    """Yield the decoders that are installed."""
    if simplejpeg := _find("simplejpeg"):

        def with_simplejpeg(file: ImageFile, side: int) -> Image.Image:
            return Image.fromarray(simplejpeg.decode_jpeg(file.content, "RGB", **_smallest(file, side)))

        yield "simplejpeg", with_simplejpeg
    if turbojpeg := _find("turbojpeg"):
        try:
            decoder = turbojpeg.TurboJPEG()
        except RuntimeError:  # The system has no libturbojpeg.
            decoder = None
        if decoder is not None:

            def with_turbojpeg(file: ImageFile, side: int) -> Image.Image:
                pixels = decoder.decode(file.content, turbojpeg.TJPF_RGB, (1, _factor(file, side)))
                return Image.fromarray(pixels)

            yield "PyTurboJPEG", with_turbojpeg
    if pyvips := _find("pyvips"):

        def with_pyvips(file: ImageFile, side: int) -> Image.Image:
            image = pyvips.Image.jpegload_buffer(file.content, shrink=_factor(file, side), access="sequential")
            return Image.frombuffer("RGB", (image.width, image.height), image.write_to_memory(), "raw", "RGB", 0, 1)

        yield "pyvips", with_pyvips


def _find(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _factor(file: ImageFile, side: int) -> int:
    """Return the factor that Pillow reduces by: a power of two, up to eight."""
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(file.width, file.height) >= factor * side)


def _smallest(file: ImageFile, side: int) -> dict[str, int]:
    factor = _factor(file, side)
    return {"min_height": file.height // factor, "min_width": file.width // factor} if factor > 1 else {}


def measure_runtimes(models: Path) -> list[dict[str, Any]]:
    """Return for each model what OpenVINO takes against ONNX Runtime, on one core and on all cores."""
    openvino = _find("openvino")
    if openvino is None:
        return []
    rows = []
    for model in sorted(path for path in models.iterdir() if path.is_dir()):
        folder = newest_version(model)
        task = read_manifest(folder).load_task(folder)
        graph = (folder / MODEL).read_bytes()
        arrays = example_arrays(task, folder)
        for threads in (1, available_cores()):
            backend = OnnxRuntime("cpu", threads)(graph, task.inputs, task.outputs)
            run = backend.run if threads == 1 else backend.run_exclusive
            other = _openvino_run(openvino, graph, task, threads)
            expected, actual = run(arrays), other(arrays)
            difference = max(
                float(np.abs(expected[spec.name].astype(float) - actual[spec.name]).max()) for spec in task.outputs
            )
            ours_s, theirs_s = time_in_turn(partial(run, arrays), partial(other, arrays))
            rows.append(
                {
                    "model": model.name,
                    "threads": threads,
                    "onnxruntime_ms": ours_s * 1e3,
                    "openvino_ms": theirs_s * 1e3,
                    "ratio": ours_s / theirs_s,
                    "largest_difference": difference,
                }
            )
    return rows


def example_arrays(task: Task, folder: Path) -> Arrays:
    """Return the first sample of the first golden request."""
    request = task.parse(read_goldens(folder)[0].request, Limits())
    samples = task.preprocess(task.decode(request, Limits()))
    return {name: np.ascontiguousarray(array[:1]) for name, array in samples.arrays.items()}


def _openvino_run(openvino: Any, graph: bytes, task: Task, threads: int) -> Run:
    core = openvino.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()

    def run(arrays: Arrays) -> Arrays:
        results = request.infer(dict(arrays))
        return {spec.name: results[spec.name] for spec in task.outputs}

    return run


def time_in_turn(*calls: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return the median time of each call, in seconds; the calls take turns."""
    for call in calls:
        call()
        call()
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    while time.perf_counter() - began < _SECONDS * len(calls) or len(times[0]) < _MIN_CALLS:
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def main() -> int:
    """Measure, print tables and write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alternatives", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "decoders", "runtimes"), default="all")
    parser.add_argument("--photos", nargs="+", type=Path, default=[], metavar="FILE", help="JPEGs to decode")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models; default: models")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the JSON file")
    options = parser.parse_args()
    results: dict[str, Any] = {"measured": describe_machine()}
    if options.what in ("all", "decoders"):
        results["decoders"] = measure_decoders(options.models, options.photos)
        print("| photo | kB | decoder | Pillow, ms | decoder, ms | graph and answer, ms | gain of a request |")
        print("|---|---|---|---|---|---|---|")
        for row in results["decoders"]:
            print(
                f"| {row['photo']} | {row['kilobytes']:.0f} | {row['decoder']} | {row['pillow_ms']:.2f} | "
                f"{row['ms']:.2f} | {row['rest_ms']:.2f} | {row['gain']:+.1%} |"
            )
    if options.what in ("all", "runtimes"):
        results["runtimes"] = measure_runtimes(options.models)
        print("| model | threads | ONNX Runtime, ms | OpenVINO, ms | times as fast | largest difference |")
        print("|---|---|---|---|---|---|")
        for row in results["runtimes"]:
            print(
                f"| {row['model']} | {row['threads']} | {row['onnxruntime_ms']:.3f} | {row['openvino_ms']:.3f} | "
                f"{row['ratio']:.2f} | {row['largest_difference']:.4f} |"
            )
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "alternatives.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
