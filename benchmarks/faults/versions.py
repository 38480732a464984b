"""Versions that come and go while requests do: taken up, refused, watched in the shadow."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.faults.clients import Reply, open_loop, steady
from benchmarks.faults.host import Host, started
from benchmarks.faults.report import Row
from benchmarks.faults.scenario import Run, first_of
from benchmarks.faults.traffic import Known
from service.backends.onnx import OnnxRuntime
from tasks.contract import Limits
from tasks.manifest import (
    MODEL,
    Golden,
    difference,
    entries_of,
    read_manifest,
    write_goldens,
    write_manifest,
)

_PER_SECOND = 50
_NOISE = 0.2
"""Of a weight, times its size: enough for other answers, and the same graph."""


def same_graph(graph: bytes) -> bytes:
    """The graph with a word of description: another file that gives the same answers (field 6 of ONNX's ModelProto)."""
    note = b"published anew"
    return graph + bytes([6 << 3 | 2, len(note)]) + note


def other_graph(graph: bytes) -> bytes:
    """A graph of the same form with other weights, and so with other answers."""
    model, generator = onnx.load_model_from_string(graph), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            noise = generator.normal(0.0, _NOISE * float(values.std()), values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    return bytes(model.SerializeToString())


def publish(root: Path, known: Known, version: str, graph: bytes, *, broken: bool = False) -> None:
    """Puts a version into the folder as a publisher does: whole at once. Its goldens are what its own graph says."""
    home = root / known.name
    folder = home / f".{version}"
    shutil.copytree(known.folder, folder)
    (folder / MODEL).write_bytes(graph)
    write_goldens(folder, [Golden(request=g.request, answer=_answer(known, graph, g.request)) for g in known.goldens])
    manifest = read_manifest(folder).model_copy(update={"version": version, "files": entries_of(folder)})
    write_manifest(folder, manifest)
    if broken:
        content = bytearray(graph)
        content[len(content) // 2] ^= 1
        (folder / MODEL).write_bytes(content)
    folder.rename(home / version)


def _answer(known: Known, graph: bytes, request: dict[str, object]) -> dict[str, object]:
    backend = OnnxRuntime("cpu")(graph, known.task.inputs, known.task.outputs)
    return known.task.answer(backend.run_alone, request, Limits()).plain()


@dataclass(frozen=True)
class Deed:
    """Something that is done while requests come, at its time."""

    at: float
    do: Callable[[], object]


def meanwhile(deeds: Sequence[Deed], work: Callable[[], list[Reply]]) -> list[Reply]:
    """What `work` gives, while the deeds are done in a thread beside it. Raises what a deed raised."""
    failures: list[BaseException] = []

    def act() -> None:
        began = time.monotonic()
        try:
            for deed in deeds:
                time.sleep(max(0.0, began + deed.at - time.monotonic()))
                deed.do()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    replies = work()
    thread.join()
    if failures:
        raise failures[0]
    return replies


def measure_swap(run: Run) -> list[Row]:
    """Version 1, then 2 with other weights, then a 3 that is broken, which goes again, at fifty requests a second."""
    known, step = run.known["adult"], run.pick(3.0, 1.5)
    graphs = {"1": known.graph, "2": other_graph(known.graph)}
    with run.copies("adult") as models:
        home = models / known.name
        deeds = [
            Deed(step, lambda: publish(models, known, "2", graphs["2"])),
            Deed(2 * step, lambda: publish(models, known, "3", graphs["2"], broken=True)),
            Deed(3 * step, lambda: shutil.rmtree(home / "3")),
        ]
        sent = [known.good(seed) for seed in range(20)]
        calls = steady([one.request for one in sent], per_second=_PER_SECOND, seconds=4 * step)
        expected = {
            version: [_answer(known, graph, dict(one.fields)) for one in sent] for version, graph in graphs.items()
        }
        with started(models, "--rescan-seconds", "0.5") as host:
            replies = meanwhile(deeds, lambda: open_loop(host.port, calls))
            refused = _reason(host, "3")
    wrong = [problem for reply in replies if (problem := _wrong(reply, expected, known))]
    order = "".join(dict.fromkeys(_version(reply) for reply in replies if reply.status == 200))
    return [
        Row(
            "swap",
            f"Versions change at {_PER_SECOND} requests a second: 1 → 2 → broken 3 → 2, {len(replies)} requests",
            "no error; each answer wholly of one version and as that version gives it; 3 never serves",
            f"{len(wrong)} wrong{first_of(wrong)}; versions served, in order: {' → '.join(order)}; 3: {refused}",
            not wrong and order == "12",
            figures={"wrong": wrong[:10], "order": order},
        )
    ]


def _reason(host: Host, version: str) -> str:
    """Why a version is not served, as the server says; or that it is no longer known."""
    (model,) = host.get("/v1/models")[1]["models"]
    return next((str(v["reason"]) for v in model["versions"] if v["version"] == version), "not listed any more")


def _version(reply: Reply) -> str:
    return reply.header("x-model").rpartition("/")[2]


def _wrong(reply: Reply, expected: dict[str, list[dict[str, object]]], known: Known) -> str | None:
    """Why an answer is not wholly that of the version which its header names; None where it is."""
    if reply.status != 200:
        return f"status {reply.status}: {reply.body[:120]!r}"
    answer, version = json.loads(reply.body), _version(reply)
    if answer.pop("version") != version or version not in expected:
        return f"the header says version {version}, the body another"
    answer.pop("model")
    return difference(expected[version][reply.key], answer, known.manifest.golden_tolerance)


def measure_shadow(run: Run) -> list[Row]:
    """A candidate that is watched before it serves: a good one is promoted, a bad one is not."""
    raise NotImplementedError
