"""Versions that come and go while requests do: taken up, refused, watched in the shadow."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from loadtests.clients import Reply, open_loop, steady
from service.backends.onnx import OnnxRuntime
from tasks.contract import Limits
from tasks.goldens import Golden, difference, write_goldens
from tasks.manifest import MODEL, entries_of, read_manifest, write_manifest
from tests.faults.faulty_backend import graph_digest
from tests.faults.report import Row
from tests.faults.sample_requests import Known, Sent, asked_alone
from tests.faults.scenario import Run, first_of
from tests.faults.server_process import Host, started, wait_until

_PER_SECOND = 50
_SLOW = 6.0
"""How many times as long a slow candidate takes in the graph; half of that is allowed, since cores are shared."""
_TRIAL_S = 60.0


def same_graph(graph: bytes, word: str) -> bytes:
    """The graph with a word of description: another file that gives the same answers (field 6 of ONNX's ModelProto)."""
    note = word.encode()
    return graph + bytes([6 << 3 | 2, len(note)]) + note


def other_graph(graph: bytes, *, noise: float = 0.2) -> bytes:
    """A graph of the same form with other weights, and so with other answers; `noise` is in units of their spread."""
    model, generator = onnx.load_model_from_string(graph), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim >= 2:
            shift = generator.normal(0.0, noise * float(values.std()), values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values + shift).astype(np.float32), tensor.name))
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
    return known.task.answer(backend.run_exclusive, request, Limits()).plain()


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


class _Trials(threading.Thread):
    """Publishes candidates one after the other, each when the one before it is decided; `reports` says of each how."""

    def __init__(self, host: Host, models: Path, known: Known) -> None:
        super().__init__()
        self._host, self._models, self._known = host, models, known
        self.reports: dict[str, dict[str, Any]] = {}
        self.failure: BaseException | None = None

    def run(self) -> None:
        graph = self._known.graph
        candidates = {
            "good": same_graph(graph, "good"),
            "other weights": other_graph(graph, noise=1.0),
            "slow": same_graph(graph, "slow"),
            "failing": same_graph(graph, "failing"),
        }
        try:
            for version, (what, candidate) in enumerate(candidates.items(), int(self._known.manifest.version) + 1):
                self.reports[what] = self._tried(str(version), what, candidate)
        except BaseException as error:
            self.failure = error

    def _tried(self, version: str, what: str, graph: bytes) -> dict[str, Any]:
        """Slow from the beginning; failing only once it has proved that it can answer."""
        host, name = self._host, graph_digest(graph)
        host.fault(marks={name: ("slow", _SLOW)} if what == "slow" else {})
        publish(self._models, self._known, version, graph)
        path = f"/v1/models/{self._known.name}/versions/{version}/shadow"
        wait_until(lambda: host.get(path)[0] == 200, seconds=_TRIAL_S, every=0.02)
        if what == "failing":
            host.fault(marks={name: ("raise", 0)})
        wait_until(lambda: bool(host.get(path)[1]["verdict"] != "running"), seconds=_TRIAL_S, every=0.1)
        report: dict[str, Any] = host.get(path)[1]
        return report


def measure_shadow(run: Run) -> list[Row]:
    """Candidates that are tried before they serve: a good one is promoted, bad ones are not, no client notices."""
    known, requests = run.known["clothing"], run.pick(40, 12)
    flags = ["--shadow", f"{known.name}=1.0", "--shadow-requests", str(requests), "--rescan-seconds", "0.3"]
    flags += ["--shadow-slowdown", f"{_SLOW / 2:g}"]
    with run.copies(known.name) as models, started(models, *flags, faulty=True) as host:
        sent = asked_alone(host.port, [known.good(seed) for seed in range(20)])
        trials, replies = _Trials(host, models, known), list[Reply]()
        trials.start()
        while trials.is_alive():
            replies += open_loop(host.port, steady([one.request for one in sent], per_second=20, seconds=1.0))
    if trials.failure is not None:
        raise trials.failure
    wrong = [problem for reply in replies if (problem := _unlike(reply, sent[reply.key]))]
    verdicts = {what: str(report["verdict"]) for what, report in trials.reports.items()}
    told = ", ".join(f"{what}: {verdict.replace('_', ' ')}" for what, verdict in verdicts.items())
    return [
        Row(
            "shadow",
            f"A candidate is tried on mirrored traffic before it serves: {known.name}, {requests} requests each",
            "good: promoted; other weights, slow, failing: rolled back; clients notice nothing",
            f"{told}; {len(wrong)} of {len(replies)} answers wrong{first_of(wrong)}",
            [verdict == "promoted" for verdict in verdicts.values()] == [True, False, False, False] and not wrong,
            figures={"reports": trials.reports, "wrong": wrong[:10]},
        )
    ]


def _unlike(reply: Reply, sent: Sent) -> str | None:
    """Why an answer is not the one that the first version gave, but for the version's name; None where it is."""
    version = json.loads(sent.expected)["version"].encode()
    named = reply.body.replace(b'"version":"%b"' % _version(reply).encode(), b'"version":"%b"' % version)
    return sent.wrong(replace(reply, body=named))
