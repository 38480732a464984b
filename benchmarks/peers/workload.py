"""What every peer computes: the same model file, the same arithmetic and the same JSON as the service's.

A user of these servers would write the code around the graph by hand, for the one model: no validation, no notices, no
options. So it is here, except for texts, whose answer needs the tokenizer's offsets and takes the task's own code. Each
server calls `decode` for each request where it likes, and `predict` with as many as it has batched.

This runs in the environments of the peers; it needs numpy, Pillow, ONNX Runtime and `tasks`.
"""

import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

Arrays = dict[str, NDArray[Any]]
Body = bytes | bytearray | dict[str, Any]
"""A request: what came over HTTP, or its JSON if the server has parsed it already."""

MAX_BATCH = 32
"""The largest batch of every peer that batches."""
MAX_DELAY_S = 0.002
"""How long peers that wait for a batch to fill wait for it."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Workload(ABC):
    """A model in an ONNX Runtime session. `predict` may be called from several threads at once.

    Args:
        folder: the model's folder.
        threads: threads of a run of the graph.
        device: `cpu`, or `cuda` for the first GPU.
    """

    def __init__(self, folder: Path, threads: int = 1, device: str = "cpu") -> None:
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        self.parameters = self.manifest["parameters"]
        self.head = {"model": self.manifest["name"], "version": self.manifest["version"]}
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait would take the cores from the other workers and from HTTP.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if device == "cuda":
            ort.preload_dlls()  # The libraries of CUDA are packages, where the system's loader does not look.
        providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        self.output_names = ["probabilities"]
        self.session = ort.InferenceSession(folder / "model.onnx", options, providers=providers)

    @abstractmethod
    def decode(self, body: Body) -> Any:
        """Return a sample from a request."""

    @abstractmethod
    def stack(self, samples: Sequence[Any]) -> Arrays:
        """Return the inputs of the graph for samples of one shape, batch axis first."""

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Run the graph; return the outputs `output_names`."""
        outputs: list[NDArray[Any]] = self.session.run(self.output_names, inputs)
        return outputs

    @abstractmethod
    def predict(self, samples: Sequence[Any]) -> list[bytes]:
        """Run the graph for all samples, once for those of each shape; return the JSON of each answer."""

    def answer(self, body: Body) -> bytes:
        """Answer one request by itself."""
        return self.predict([self.decode(body)])[0]

    def answer_batch(self, bodies: Sequence[Body]) -> list[bytes]:
        """Decode and answer several requests."""
        return self.predict([self.decode(body) for body in bodies])

    def _json(self, answer: dict[str, Any]) -> bytes:
        return json.dumps(self.head | answer, separators=(",", ":")).encode()


class Pictures(Workload):
    """Labels of a picture. A sample is its pixels, uint8 (size, size, 3)."""

    def decode(self, body: Body) -> NDArray[np.uint8]:
        """Decode with Pillow, at a reduced scale if the file is much larger, and resize."""
        size = self.parameters["size"]
        image: Image.Image = Image.open(io.BytesIO(body))  # type: ignore[arg-type]
        if min(image.size) >= 2 * size:
            image.draft("RGB", (size, size))
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return np.asarray(image)

    def stack(self, samples: Sequence[NDArray[np.uint8]]) -> Arrays:
        """Return the pixels, uint8 (n, size, size, 3)."""
        return {"image": np.stack(samples)}

    def predict(self, samples: Sequence[NDArray[np.uint8]]) -> list[bytes]:
        """Return the five most probable labels of each picture."""
        (probabilities,) = self.run(self.stack(samples))
        return [self._labels(row) for row in probabilities]

    def _labels(self, probabilities: NDArray[np.float32]) -> bytes:
        names = self.parameters["labels"]
        scores = [
            {"label": names[i], "probability": round(float(probabilities[i]), 6)}
            for i in np.argsort(-probabilities, kind="stable")[:5].tolist()
        ]
        return self._json({**scores[0], "labels": scores, "heatmap": None})


class Rows(Workload):
    """The class of a row. A sample is its categories as indices and its numbers."""

    def __init__(self, folder: Path, threads: int = 1, device: str = "cpu") -> None:
        super().__init__(folder, threads, device)
        columns = self.parameters["columns"]
        self.numbers = [column["name"] for column in columns if column["kind"] == "number"]
        self.categories = [
            (column["name"], {None: 0} | {value: i for i, value in enumerate(column["values"], 2)})
            for column in columns
            if column["kind"] == "category"
        ]

    def decode(self, body: Body) -> tuple[list[int], list[float]]:
        """Look up the categories of the one row; 0 is missing, 1 unknown."""
        (row,) = (body if isinstance(body, dict) else json.loads(body))["rows"]
        categories = [index.get(row.get(name), 1) for name, index in self.categories]
        return categories, [math.nan if row[name] is None else row[name] for name in self.numbers]

    def stack(self, samples: Sequence[tuple[list[int], list[float]]]) -> Arrays:
        """Return categories, int64 (n, columns), and numbers, float32 (n, columns)."""
        categories, numbers = zip(*samples, strict=True)
        return {"categories": np.array(categories, np.int64), "numbers": np.array(numbers, np.float32)}

    def predict(self, samples: Sequence[tuple[list[int], list[float]]]) -> list[bytes]:
        """Return the class of each row, with the probabilities of all."""
        (probabilities,) = self.run(self.stack(samples))
        names = self.parameters["labels"]
        answers = []
        for values in probabilities.astype(float).round(6).tolist():
            best = max(range(len(values)), key=values.__getitem__)
            prediction = {
                "label": names[best],
                "probability": values[best],
                "probabilities": dict(zip(names, values, strict=True)),
            }
            answers.append(self._json({"predictions": [prediction], "notices": []}))
        return answers


class Texts(Workload):
    """The sentiment of a text. A sample is the request with what the task's `preprocess` makes of it."""

    def __init__(self, folder: Path, threads: int = 1, device: str = "cpu") -> None:
        super().__init__(folder, threads, device)
        from tasks.manifest import read_manifest  # Imported only here, so that pictures and rows do without its memory.

        self.task = read_manifest(folder).load_task(folder)
        self.output_names = [spec.name for spec in self.task.outputs]

    def decode(self, body: Body) -> Any:
        """Tokenize the text."""
        from tasks.contract import Limits

        request = self.task.parse(body if isinstance(body, dict) else {"text": bytes(body)}, Limits())
        return request, self.task.preprocess(self.task.decode(request, Limits()))

    def stack(self, samples: Sequence[Any]) -> Arrays:
        """Return the tokens, int64 (n, length)."""
        return {"tokens": np.concatenate([sample.arrays["tokens"] for _, sample in samples])}

    def predict(self, samples: Sequence[Any]) -> list[bytes]:
        """Run the graph on all texts that were padded to the same length."""
        answers: dict[int, bytes] = {}
        shapes = {samples[i][1].arrays["tokens"].shape[1] for i in range(len(samples))}
        for length in shapes:
            chosen = [i for i, (_, sample) in enumerate(samples) if sample.arrays["tokens"].shape[1] == length]
            outputs = self.run(self.stack([samples[i] for i in chosen]))
            start = 0
            for i in chosen:
                request, sample = samples[i]
                end = start + len(sample)
                part = {name: output[start:end] for name, output in zip(self.output_names, outputs, strict=True)}
                answers[i] = self._json(self.task.postprocess(part, sample, request).plain())
                start = end
        return [answers[i] for i in range(len(samples))]


_WORKLOADS: dict[str, type[Workload]] = {"classification": Pictures, "tabular": Rows, "sentiment": Texts}


def load_workload(folder: Path, threads: int = 1, device: str = "cpu") -> Workload:
    """Load the model in `folder`. Raises KeyError if it is none of a task that is compared."""
    task = json.loads((folder / "manifest.json").read_bytes())["task"]
    return _WORKLOADS[task](folder, threads, device)


@dataclass(frozen=True)
class Assignment:
    """What a server is told in its environment, which the processes that it starts inherit.

    Attributes:
        folder: the model's folder.
        port: where to listen, on the loopback interface.
        processes: processes that run the graph.
        device: `cpu` or `cuda`.
    """

    folder: Path
    port: int
    processes: int
    device: str

    @property
    def threads(self) -> int:
        """Threads of a run of the graph: the cores, shared among the processes."""
        return max(1, cores() // self.processes)

    def load(self) -> Workload:
        """Load the model."""
        return load_workload(self.folder, self.threads, self.device)

    def to_environment(self) -> dict[str, str]:
        """Return the variables that tell a server."""
        values = (str(self.folder), str(self.port), str(self.processes), self.device)
        return dict(zip(_VARIABLES, values, strict=True))


_VARIABLES = ("PEER_MODEL", "PEER_PORT", "PEER_PROCESSES", "PEER_DEVICE")


def read_assignment() -> Assignment:
    """Return what the environment tells. Raises KeyError without it."""
    folder, port, processes, device = (os.environ[name] for name in _VARIABLES)
    return Assignment(Path(folder), int(port), int(processes), device)
