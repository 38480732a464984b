"""The comparison with other servers: what it computes, measures, repeats and reports, without any of the peers."""

import http.server
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.contenders import OURS, Service, has_setting, our_services, versions_of
from benchmarks.peers.engine import measure_engine
from benchmarks.peers.environments import Environments, Unavailable, cuda_requirements, find_python
from benchmarks.peers.machine_load import machine_cpu_s
from benchmarks.peers.measure import (
    Log,
    Measurement,
    Plan,
    Sample,
    Visit,
    cells_to_repeat,
    counted_samples,
    noisy_samples,
    summarize,
)
from benchmarks.peers.payloads import Payload, decode_answer, encode_payload
from benchmarks.peers.peers import PEERS, Peer
from benchmarks.peers.processes import run_server
from benchmarks.peers.questions import MODELS, ReadinessCheck, check_answer, our_question
from benchmarks.peers.report import markdown, ratios, svg
from benchmarks.peers.workload import load_workload
from benchmarks.peers.wrk import Load, NoWrk, parse_load, run_wrk
from benchmarks.serving import example_request, newest_version
from tasks.manifest import read_manifest

ROOT = Path(__file__).parents[2]
LINE = '{"requests": 1000, "seconds": 2.0, "p50_ms": 1.5, "p99_ms": 9.25, "refused": 3, "broken": 1}'
PLAN = Plan(models=("adult",), connections=(1, 8), seconds=1, rounds=3, repeats=2)


def sample(per_second: float, *, others: float = 0.0, connections: int = 8, errors: int = 0) -> Sample:
    return Sample(connections, per_second, p50_ms=1.0, p99_ms=2.0, errors=errors, others=others)


# What wrk says


def test_the_result_is_the_last_line_of_json_in_what_wrk_prints() -> None:
    load = parse_load(f"Running 2s test\n  Thread Stats {{…}}\n{LINE}\n")

    assert load == Load(requests=1000, seconds=2.0, p50_ms=1.5, p99_ms=9.25, errors=4)
    assert load.per_second == 498


def test_output_without_a_result_is_an_error_that_shows_it() -> None:
    with pytest.raises(NoWrk, match="unable to connect"):
        parse_load("unable to connect to 127.0.0.1:1 Connection refused")


@contextmanager
def http_server(status: int) -> Iterator[tuple[int, list[tuple[str | None, bytes]]]]:
    received: list[tuple[str | None, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.headers["Content-Type"], body))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], received
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize("status", [200, 503])
def test_wrk_sends_the_payload_and_counts_refusals_as_errors(status: int) -> None:
    body = bytes(range(256))

    with http_server(status) as (port, received):
        load = run_wrk(port, "/predict", Payload({"Content-Type": "image/jpeg"}, body), connections=2, seconds=1)

    assert set(received) == {("image/jpeg", body)}
    assert load.requests > 0
    assert load.errors == (0 if status == 200 else load.requests)
    assert 0 < load.p50_ms <= load.p99_ms


def test_without_wrk_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--only", "--results", str(tmp_path)],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, "apt-get install wrk" in ended.stderr) == (2, True), ended.stderr


# Which samples are noisy, and which count


def test_a_sample_is_noisy_if_it_is_far_from_the_median_or_other_programs_ran() -> None:
    low, disturbed = sample(80), sample(101, others=0.5)

    assert noisy_samples([sample(100), sample(102), low, disturbed]) == [low, disturbed]


def test_samples_that_others_disturbed_do_not_count_unless_all_were() -> None:
    quiet, low, disturbed = sample(100), sample(60), sample(50, others=0.5)

    assert counted_samples([quiet, low, disturbed]) == [quiet, low]
    assert counted_samples([disturbed]) == [disturbed]


def test_only_cells_without_enough_quiet_samples_are_repeated() -> None:
    visits = [
        Visit("adult", "a", turn, samples=(sample(100, connections=1), sample(rate, connections=8)))
        for turn, rate in enumerate((100, 101, 70))
    ]

    assert cells_to_repeat(visits, rounds=3) == {("adult", "a"): [8]}
    assert cells_to_repeat(visits, rounds=2) == {}


def test_processor_time_of_the_machine_is_that_of_programs_and_what_was_stolen() -> None:
    ticks = os.sysconf("SC_CLK_TCK")

    assert machine_cpu_s(f"cpu  {ticks} {ticks} {ticks} 900 900 900 900 {ticks} 0 0\ncpu0 1 2 3\n") == 4


# The rounds


@dataclass
class FakeServer:
    port: int = 1
    start_s: float = 1.5
    memory_mb: float = 100.0
    cpu_s: float = 0.0


@dataclass
class FakeQuestion:
    answers: list[tuple[int, Any]] = field(default_factory=lambda: [(200, {"label": "x"})])
    path: str = "/predict"
    payload: Payload = field(default_factory=lambda: Payload({}, b""))

    def ask(self, port: int) -> tuple[int, Any]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@dataclass
class FakeContender:
    name: str
    failure: str = ""
    settings: str = "defaults"
    starts: int = 0

    @property
    def title(self) -> str:
        return self.name

    def version(self) -> str:
        if self.failure == "cannot be installed":
            raise Unavailable(self.failure)
        return "1.0"

    def question(self, models: Path, model: str) -> Any:
        return FakeQuestion()

    @contextmanager
    def start(self, models: Path, model: str, expected: Any) -> Iterator[Any]:
        self.starts += 1
        if self.failure:
            raise Unavailable(self.failure)
        yield FakeServer()


def measurement(tmp_path: Path, *contenders: FakeContender, rates: list[float] | None = None) -> Measurement:
    values = iter(rates or [])

    def send_load(*_: Any, connections: int, seconds: float) -> Load:
        return Load(int(next(values, 100.0)), seconds, 1.0, 2.0, 0)

    log = Log.begin(tmp_path / "run.jsonl", {})
    return Measurement(
        {contender.name: contender for contender in contenders}, tmp_path, PLAN, log, send_load, lambda line: None
    )


def test_a_peer_that_fails_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    ours, broken, other = FakeContender(OURS), FakeContender("broken", "It ended with code 1."), FakeContender("other")

    visits = measurement(tmp_path, ours, broken, other).run()

    assert [visit.failure for visit in visits if visit.name == "broken"] == ["It ended with code 1."] * 2
    assert broken.starts == 2
    for name in (OURS, "other"):
        assert {visit.turn for visit in visits if visit.name == name} >= {0, 1, 2}
    assert [record["name"] for record in summarize(visits, [OURS, "broken", "other"], PLAN)] == [OURS, "other"]


def test_the_order_of_the_servers_alternates(tmp_path: Path) -> None:
    visits = measurement(tmp_path, FakeContender(OURS), FakeContender("other")).run()

    assert [visit.name for visit in visits][:4] == [OURS, "other", "other", OURS]


def test_a_run_that_was_cut_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, head = tmp_path / "run.jsonl", {"plan": 1}
    log = Log.begin(path, head)
    log.add(Visit("adult", OURS, 0, 1.0, 90.0, 100.0, (sample(100, connections=1), sample(100))))
    with path.open("a") as file:
        file.write('{"model": "adult", "na')  # Cut off while it was written.

    resumed = Log.resume(path, head)
    ours = FakeContender(OURS)
    Measurement({OURS: ours}, tmp_path, PLAN, resumed, lambda *_, **__: Load(100, 1.0, 1, 2, 0), lambda _: None).run()

    assert len([visit for visit in resumed.visits if visit.turn == 0]) == 1
    assert Log.resume(path, head).visits == resumed.visits


def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path) -> None:
    Log.begin(tmp_path / "run.jsonl", {"plan": 1})

    with pytest.raises(ValueError, match="other settings"):
        Log.resume(tmp_path / "run.jsonl", {"plan": 2})


def test_a_peer_that_cannot_be_installed_has_a_reason_and_no_version() -> None:
    contenders = {each.name: each for each in (FakeContender(OURS), FakeContender("x", "cannot be installed"))}

    assert versions_of(contenders) == ({OURS: "1.0"}, {"x": "cannot be installed"})


def test_a_setting_that_the_service_does_not_have_is_the_reason_why_a_variant_is_missing() -> None:
    with pytest.raises(Unavailable, match="has no setting --no-such-setting"):
        Service(flags=("--no-such-setting", "2")).version()


def test_the_service_is_measured_as_it_is_without_a_setting_for_processes() -> None:
    services = our_services(("--log-level", "warning", "--processes", "3"), "cpu")

    assert [(service.name, service.flags[-1]) for service in services] == [(OURS, "3")]
    assert has_setting("--log-level")
    assert not has_setting("--log")


# Servers as processes


LEAVES_A_DAEMON = """
import os, subprocess, sys, time
sleep = "import time; time.sleep(120)"
start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
subprocess.run([sys.executable, "-c", start], check=True)
child = subprocess.Popen([sys.executable, "-c", sleep])
open(sys.argv[1], "w").write("ready")
time.sleep(120)
"""


def processes_with(text: str) -> set[int]:
    found = set()
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and text.encode() in (path / "environ").read_bytes():
                found.add(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_all_processes_of_a_server_end_with_it_even_daemons_and_after_an_error(tmp_path: Path) -> None:
    ready, own = tmp_path / "ready", f"OWN_TEST={os.getpid()}-{tmp_path.name}"
    name, _, value = own.partition("=")
    command = [sys.executable, "-c", LEAVES_A_DAEMON, str(ready)]

    def use() -> None:
        with run_server(command, {name: value}, 0, lambda port: ready.exists() and bool(ready.read_text())) as server:
            assert len(processes_with(own)) == 3
            assert server.memory_mb > 5
            raise KeyError

    with pytest.raises(KeyError):
        use()

    assert processes_with(own) == set()


def test_a_server_that_ends_is_unavailable_with_the_end_of_its_log() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('No module named torch')"]

    with pytest.raises(Unavailable, match="code 1: No module named torch"), run_server(command, {}, 0, lambda _: False):
        pass


def test_a_server_that_never_answers_is_given_up() -> None:
    def refuse(port: int) -> bool:
        raise ConnectionRefusedError("refused")

    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(Unavailable, match="refused"), run_server(command, {}, 0, refuse, start_s=0.2):
        pass


def test_a_wrong_answer_is_the_end_and_an_error_only_if_it_lasts() -> None:
    now = iter([0.0, 5.0, 90.0])
    wrong = ReadinessCheck(FakeQuestion([(200, {"label": "y"})]), {"label": "x"})
    loading = ReadinessCheck(FakeQuestion([(503, b"loading")]), {"label": "x"}, clock=lambda: next(now))

    with pytest.raises(Unavailable, match="another answer than ours"):
        wrong(1)
    assert not loading(1)
    assert not loading(1)
    with pytest.raises(Unavailable, match="status 503: b'loading'"):
        loading(1)


# Environments


def peer(**options: Any) -> Peer:
    return Peer(name="x", title="X", package="pip", folder="x", settings="", **options)


def test_a_python_that_is_not_there_is_the_reason_why_a_peer_is_missing() -> None:
    with pytest.raises(Unavailable, match=r"needs Python 3\.99 with a shared libpython"):
        find_python(peer(python="3.99", needs_libpython=True))


def test_an_environment_is_made_once_and_again_when_its_requirements_change(tmp_path: Path) -> None:
    requirements = tmp_path / "servers" / "x" / "requirements.txt"
    requirements.parent.mkdir(parents=True)
    requirements.write_text("")
    environments = Environments(tmp_path / "cache", tmp_path / "servers")

    python = environments.python(peer())
    kept = tmp_path / "cache" / "x" / "kept"
    kept.touch()
    assert environments.python(peer()) == python
    assert kept.exists()
    requirements.write_text("# changed\n")
    environments.python(peer())

    assert not kept.exists()
    with pytest.raises(Unavailable, match="No package metadata was found for no-such-package"):
        environments.version(Peer("x", "X", "no-such-package", "x", ""))


def test_on_a_gpu_the_runtime_and_its_libraries_are_those_of_the_service() -> None:
    requirements = (ROOT / "requirements" / "serve-gpu.txt").read_text("utf-8")

    lines = cuda_requirements(requirements).splitlines()

    packages = {line.partition("==")[0] for line in lines if "==" in line}
    assert {"onnxruntime-gpu", "nvidia-cudnn-cu13"} <= packages
    assert all(package.startswith(("onnxruntime-gpu", "nvidia-")) for package in packages)
    assert any("--hash" in line for line in lines)


def test_every_peer_has_a_server_and_pinned_requirements() -> None:
    for each in PEERS:
        folder = ROOT / "benchmarks" / "peers" / "servers" / each.folder
        assert (folder / "server.py").exists()
        assert f"\n{each.package}==" in "\n" + (folder / "requirements.txt").read_text("utf-8").replace("[serve]", "")
        assert "--hash" in (folder / "requirements.txt").read_text("utf-8")


# Requests and answers


@pytest.mark.parametrize("name", MODELS)
def test_what_the_peers_compute_is_what_the_task_answers(name: str) -> None:
    folder = newest_version(ROOT / "models" / name)
    task, workload = read_manifest(folder).load_task(folder), load_workload(folder)
    content_type, content = example_request(folder, name)
    body = json.loads(content) if content_type == "application/json" else {task.upload.field: content}
    names = [spec.name for spec in task.outputs]

    expected = task.answer(
        lambda arrays: dict(zip(names, workload.session.run(names, dict(arrays)), strict=True)), body
    )

    answers = workload.answer_batch([content, content])
    for answer in map(json.loads, answers):
        check_answer(expected.plain(), {key: answer[key] for key in answer if key not in ("model", "version")})
        assert (answer["model"], answer["version"]) == (name, folder.name)


def test_the_throughput_of_the_graph_alone_is_that_of_its_best_batch() -> None:
    engine = measure_engine(ROOT / "models", "adult", "cpu", seconds=0.01)

    assert engine["batch"] > 1
    assert engine["per_second"] > 0


def test_an_answer_that_differs_is_refused_and_rounding_is_not() -> None:
    check_answer({"p": 0.5, "heatmap": None}, {"p": 0.50001})
    with pytest.raises(Unavailable, match=r"answer\.p is 0\.6"):
        check_answer({"p": 0.5}, {"p": 0.6})


def test_a_picture_travels_unchanged_in_every_protocol() -> None:
    picture = b"\xff\xd8" + bytes(range(256))

    assert encode_payload("raw", "image/jpeg", picture).body == picture
    assert picture in encode_payload("multipart", "image/jpeg", picture).body
    binary = encode_payload("v2-binary", "image/jpeg", picture)
    start = int(binary.headers["Inference-Header-Content-Length"])
    assert binary.body[start:] == len(picture).to_bytes(4, "little") + picture
    for protocol in ("v1", "v2-json"):
        json.loads(encode_payload(protocol, "image/jpeg", picture).body)


def test_the_answer_is_read_from_tensors() -> None:
    answer = b'{"label": "hat"}'
    head = b'{"outputs": []}'
    body = head + len(answer).to_bytes(4, "little") + answer

    assert decode_answer("v2-binary", {"inference-header-content-length": str(len(head))}, body) == {"label": "hat"}
    in_json = json.dumps({"outputs": [{"data": [answer.decode()]}]}).encode()
    assert decode_answer("v2-json", {}, in_json) == {"label": "hat"}
    with pytest.raises(ValueError, match="not json"):
        decode_answer("raw", {}, b"not json")


def test_our_request_is_the_example_of_the_repository() -> None:
    question = our_question(ROOT / "models", "clothing")

    assert question.path == "/v1/models/clothing/predict"
    assert question.payload.body == (ROOT / "examples" / "clothing-hat.jpg").read_bytes()


# The report


def record(name: str, *rates: float) -> dict[str, Any]:
    loads = [
        {"connections": c, "per_second": r, "p50_ms": 1, "p99_ms": 30.4, "errors": 0, "noisy": 1, "samples": [[r, 0.0]]}
        for c, r in zip((1, 32), rates, strict=True)
    ]
    return {"model": "adult", "name": name, "start_s": 1.25, "idle_mb": 90.0, "loaded_mb": 100.0, "loads": loads}


RESULTS: dict[str, Any] = {
    "measured": {
        "when": "2026-01-02T",
        "commit": "abc",
        "cores": 2,
        "processor": "P",
        "python": "3",
        "onnxruntime": "1",
    },
    "wrk": "wrk 4.1.0",
    "device": "cpu",
    "engine": {"adult": {"per_second": 24000.0, "batch": 32}},
    "plan": {"models": ["adult"], "connections": [1, 32], "seconds": 6.0, "rounds": 3, "repeats": 2},
    "payloads": {"adult": "300 bytes"},
    "contenders": [
        {"name": OURS, "title": "**Sevenfold**", "version": "0.1", "settings": "defaults"},
        {"name": "mosec", "title": "mosec", "version": "0.9", "settings": "a worker per core"},
        {"name": "a<b", "title": "A & B", "version": "–", "settings": "–"},
    ],
    "records": [record(OURS, 3000, 12000), record("mosec", 300, 16000)],
    "unavailable": [{"name": "a<b", "model": "", "reason": "It needs Python 3.12."}],
}


def test_the_table_has_a_line_for_each_server_and_what_is_missing() -> None:
    report = markdown(RESULTS)

    assert "| **Sevenfold** | **3,000** | 12,000 | 1.0 | 30 | 0 | 100 | 1.2 |" in report
    assert "| mosec | 300 | **16,000** |" in report
    assert "| *ours ÷ best peer* | 10.00 × | 0.75 × |" in report
    assert "reaches 24,000 samples/s in batches of 32; the service reaches 50.0% of it" in report
    assert "- A & B: It needs Python 3.12." in report
    assert "4 of 4 samples were noisy" in report
    assert ratios(RESULTS, "adult") == [10.0, 0.75]


def test_the_plot_is_an_image_for_light_and_dark_pages_with_a_bar_for_each_server() -> None:
    drawn = svg(RESULTS)

    tree = ET.fromstring(drawn)  # noqa: S314 — it was drawn here.
    bars = list(tree.iter("{http://www.w3.org/2000/svg}rect"))
    assert [bar.get("class") for bar in bars] == ["peer", "ours"]
    lengths = [float(bar.get("width") or math.nan) for bar in bars]
    assert lengths[1] == pytest.approx(lengths[0] * 0.75, rel=0.01)
    assert "prefers-color-scheme: dark" in drawn
    assert "Sevenfold" in "".join(tree.itertext())
