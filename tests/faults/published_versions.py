"""New versions of a shipped model, made and published while a server runs."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from loadtests.clients import Reply
from service.backends.onnx import OnnxRuntime
from tasks.contract import Limits
from tasks.goldens import Golden, first_difference, write_goldens
from tasks.manifest import MODEL, entries_of, graph_and_goldens, read_manifest, write_manifest
from tests.faults.sample_requests import KnownModel


def same_graph(graph: bytes, description: str) -> bytes:
    """Return a graph with other bytes and the same answers: it gets a description (field 6 of ONNX's ModelProto)."""
    text = description.encode()
    return graph + bytes([6 << 3 | 2, len(text)]) + text


def other_weights(graph: bytes, *, noise: float = 0.2) -> bytes:
    """Return the graph with noise added to its weights, and so with other answers; in units of their deviation."""
    model, rng = onnx.load_model_from_string(graph), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim >= 2:
            shift = rng.normal(0.0, noise * float(values.std()), values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values + shift).astype(np.float32), tensor.name))
    return bytes(model.SerializeToString())


def publish(models: Path, known: KnownModel, version: str, graph: bytes, *, broken: bool = False) -> None:
    """Publish a version as training does: its folder is renamed into place when it is complete.

    Its goldens are the answers of its own graph. A broken one has a flipped bit in its graph.
    """
    model = models / known.name
    folder = model / f".{version}"
    shutil.copytree(known.folder, folder)
    remove_variants(folder)
    (folder / MODEL).write_bytes(graph)
    write_goldens(folder, [Golden(request=g.request, answer=answer_of(known, graph, g.request)) for g in known.goldens])
    manifest = read_manifest(folder).model_copy(update={"version": version, "files": entries_of(folder)})
    write_manifest(folder, manifest)
    if broken:
        content = bytearray(graph)
        content[len(content) // 2] ^= 1
        (folder / MODEL).write_bytes(content)
    folder.rename(model / version)


def remove_variants(folder: Path) -> None:
    """Leave a copy of a version with its graph in 32 bits alone: variants would keep the answers of the shipped one."""
    manifest = read_manifest(folder)
    others = {name for variant in manifest.variants for name in graph_and_goldens(variant)}
    for name in others:
        (folder / name).unlink()
    files = {name: entry for name, entry in manifest.files.items() if name not in others}
    write_manifest(folder, manifest.model_copy(update={"variants": (), "files": files}))


def answer_of(known: KnownModel, graph: bytes, request: dict[str, object]) -> dict[str, object]:
    """Return a graph's answer to a request, computed in this process."""
    backend = OnnxRuntime("cpu")(graph, known.task.inputs, known.task.outputs)
    return known.task.answer(backend.run_exclusive, request, Limits()).plain()


def version_of(reply: Reply) -> str:
    """Return the version that gave the answer."""
    return reply.header("x-model").rpartition("/")[2]


def wrong_answer(reply: Reply, answers: Mapping[str, Mapping[str, object]], tolerance: float) -> str | None:
    """Return why an answer is not that of the version which its header names, or None.

    `answers` has the right answer of each version.
    """
    if reply.status != 200:
        return f"status {reply.status}: {reply.body[:120]!r}"
    answer, version = json.loads(reply.body), version_of(reply)
    if answer.pop("version") != version or version not in answers:
        return f"the header names version {version}, the body another"
    answer.pop("model")
    return first_difference(answers[version], answer, tolerance)
