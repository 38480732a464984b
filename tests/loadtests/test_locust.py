"""Locust's runs for real, headless, against a server of tiny models."""

import ast
import csv
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from loadtests.server import free_port, start_server
from loadtests.workload import Server
from tasks import task_names

ROOT = Path(__file__).parents[2]
FEW_SECONDS = ("--headless", "-u", "10", "-r", "100", "-t", "4s")


def locust(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)


def rows(folder: Path) -> Mapping[tuple[str, str], Mapping[str, str]]:
    """Return the rows of the table that Locust has written, by type and name."""
    with (folder / "load_stats.csv").open(newline="") as file:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_every_model_is_asked_and_its_stages_are_rows_of_their_own(url: str, tmp_path: Path) -> None:
    files = ["--csv", str(tmp_path / "load"), "--html", str(tmp_path / "load.html")]

    ended = locust("--host", url, *FEW_SECONDS, *files, "--files", "examples", "--max-error-ratio", "0")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Objectives: kept" in ended.stdout
    table = rows(tmp_path)
    requests = {name: row for (kind, name), row in table.items() if kind == "POST"}
    assert set(task_names()) <= requests.keys()
    stages = {name for kind, name in table if kind == "stage"}
    assert {f"{name} {stage}" for name in requests for stage in ("queue", "infer", "total")} <= stages
    # Stages are no requests: the total counts each request once.
    assert int(table["", "Aggregated"]["Request Count"]) == sum(int(row["Request Count"]) for row in requests.values())
    assert "<html" in (tmp_path / "load.html").read_text("utf-8")


@pytest.mark.slow
def test_the_exit_code_says_that_an_objective_was_not_kept(url: str) -> None:
    ended = locust("--host", url, *FEW_SECONDS, "--only", "tabular", "--p99-ms", "all=0.001")

    assert ended.returncode == 1
    assert "p99 above 0.001 ms" in ended.stdout


@pytest.mark.slow
def test_a_shape_sets_the_users_and_ends_the_run(url: str) -> None:
    shape = ["--shape", "steps", "--shape-users", "5", "--shape-seconds", "5"]

    ended = locust("--host", url, "--headless", "--only", "tabular,sentiment", *shape)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Shape test updating to 5 users" in ended.stderr
    assert "Shape test completed" in ended.stderr


@pytest.mark.slow
def test_a_shape_follows_the_usual_options_for_users_and_time(url: str) -> None:
    ended = locust("--host", url, "--headless", "-u", "4", "-t", "5s", "--only", "tabular", "--shape", "steps")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Shape test updating to 4 users" in ended.stderr
    assert "Shape test completed" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "clothing"), "The server has no model clothing that is ready"),
        (("--weights", "tabular=many"), "'tabular=many' is not NAME=NUMBER"),
        (("--weights", "nobody=1"), "nobody, which the server does not have"),
        (("--files", "does-not-exist"), "does not exist; give --files another one"),
    ],
)
def test_what_cannot_run_says_why_and_ends_with_2(url: str, arguments: tuple[str, ...], message: str) -> None:
    ended = locust("--host", url, *FEW_SECONDS, *arguments)

    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.slow
def test_master_and_worker_share_the_load_of_one_run(url: str, tmp_path: Path) -> None:
    port = str(free_port())
    arguments = ["--worker", "--host", url, "--only", "tabular", "--master-host", "127.0.0.1", "--master-port", port]
    worker = subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ended = locust(
            *("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "1"),
            *("--expect-workers-max-wait", "60", "--host", url, "--only", "tabular", *FEW_SECONDS),
            *("--csv", str(tmp_path / "load")),
        )
        status = worker.wait(30)
    finally:
        worker.kill()

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert status == 0
    table = rows(tmp_path)
    assert int(table["POST", "tabular"]["Request Count"]) > 0
    assert int(table["stage", "tabular infer"]["Request Count"]) > 0


class _LateServer(BaseHTTPRequestHandler):
    """Passes requests on to a server, but not before `may_answer` is set."""

    server_url = ""
    may_answer: threading.Event

    def do_GET(self) -> None:
        assert self.may_answer.wait(120)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"Content-Type": self.headers.get("Content-Type", "")}
        answer = httpx.request(self.command, f"{self.server_url}{self.path}", content=body, headers=headers)
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def late(url: str) -> Iterator[tuple[str, threading.Event]]:
    """Return the address of a server that does not answer until the event is set."""
    handler = type("Handler", (_LateServer,), {"server_url": url, "may_answer": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.may_answer
        handler.may_answer.set()
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_worker_that_still_asks_for_the_models_when_the_run_starts_takes_part(
    url: str, late: tuple[str, threading.Event], tmp_path: Path
) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--only", "tabular"]
    worker = ["--worker", "--host", late[0], "--master-host", "127.0.0.1", "--master-port", port]
    master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "1"]
    master += ["--host", url, *FEW_SECONDS, "--csv", str(tmp_path / "load")]

    with (
        subprocess.Popen([*command, *worker], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one,
        subprocess.Popen([*command, *master], cwd=ROOT, stderr=subprocess.PIPE, text=True) as other,
    ):
        assert other.stderr
        for line in other.stderr:
            if "Sending spawn jobs" in line:
                late[1].set()
        one.kill()

    assert int(rows(tmp_path)["POST", "tabular"]["Request Count"]) > 0


@pytest.mark.slow
def test_an_eighth_task_is_asked_without_an_edit_to_the_load_tests(tmp_path: Path) -> None:
    for name in ("tasks", "service", "loadtests", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("reports", "results"))
    shutil.copytree(ROOT / "tests" / "new_task", tmp_path, dirs_exist_ok=True)
    program = "from pathlib import Path; from tests.tiny.models import *; publish_every_task(Path('models'))"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)

    with start_server(Path("models"), "--only", "brightness,tabular", cwd=tmp_path) as (_, port):
        arguments = ["--host", f"http://127.0.0.1:{port}", *FEW_SECONDS, "--csv", str(tmp_path / "load")]
        ended = locust(*arguments, "--files", str(ROOT / "examples"), cwd=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    table = rows(tmp_path)
    assert int(table["POST", "brightness"]["Request Count"]) > 0
    assert ("stage", "brightness infer") in table


def test_only_the_locustfile_imports_locust_which_patches_the_standard_library() -> None:
    importing = {
        path.name
        for path in (ROOT / "loadtests").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.partition(".")[0] in ("locust", "gevent", "geventhttpclient")
    }

    assert importing == {"locustfile.py"}


def test_what_locust_needs_loads_without_the_service_and_its_dependencies() -> None:
    blocked = ("service", "tasks", "training", "numpy", "uvloop", "hdrh")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
        "import loadtests.workload, loadtests.objectives, loadtests.shapes"
    )

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr


def test_the_api_key_goes_into_the_header_of_every_request() -> None:
    assert Server("http://127.0.0.1:1", "secret").headers == {"Authorization": "Bearer secret"}
    assert Server("http://127.0.0.1:1").headers == {}
