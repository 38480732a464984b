"""The server in a container: limits of control groups, folders without models, and what Kubernetes puts into pods.

Each test starts the program in a process of its own, most of them within real control groups.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from loadtests.server import start_process, start_server
from service.backends.memory import HostMemory
from tests.control_groups import MODULE, CannotLimit, LimitedGroup, limited_group
from tests.model_folders import publish
from tests.service.conftest import Start
from tests.service.program import ROOT, program, read_until, started
from tests.tiny.classification import COLOURS, colours_graph
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

GIB = 1 << 30
ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


@pytest.fixture
def small_container() -> Iterator[LimitedGroup]:
    """Half a core and 1 GiB."""
    try:
        with limited_group(memory_bytes=GIB, cores=0.5) as group:
            yield group
    except CannotLimit as error:
        pytest.skip(str(error))


def environment(group: LimitedGroup) -> dict[str, str]:
    return dict(os.environ | group.environment)


def threads_of(pid: int) -> list[str]:
    return [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]


@pytest.mark.slow
def test_under_half_a_core_and_1_gib_the_server_runs_one_batch_at_a_time_and_answers(
    small_container: LimitedGroup, tiny_models: Path
) -> None:
    with start_server(tiny_models, module=MODULE, cwd=ROOT, env=environment(small_container)) as (process, port):
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/models/credit/predict", json=ROW, timeout=60)
        members = small_container.pids()
        few = len(threads_of(process.pid))

    assert answer.status_code == 200
    assert process.pid in members
    assert few < 30
    assert small_container.killed() == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_forty_photos_of_25_megapixels_at_once_do_not_kill_a_server_of_1_gib(small_container: LimitedGroup) -> None:
    content = _flat_png()
    flags = ("--only", "adult,clothing,faces", "--timeout-ms", "60000", "--device", "cpu")

    with start_process(ROOT / "models", *flags, module=MODULE, cwd=ROOT, env=environment(small_container)) as process:
        assert process.stdout is not None
        port = int(re.findall(r":(\d+) ", process.stdout.readline())[0])
        url = f"http://127.0.0.1:{port}/v1/models/faces/predict"
        with httpx.Client(timeout=120) as client, ThreadPoolExecutor(40) as pool:
            headers = {"content-type": "image/png"}
            sent = [pool.submit(client.post, url, content=content, headers=headers) for _ in range(40)]
            statuses = {response.result().status_code for response in sent}
            ready = client.get(f"http://127.0.0.1:{port}/health/ready").status_code

        assert statuses <= {200, 413, 422, 503, 504}
        assert ready == 200
        assert small_container.killed() == 0
        assert process.poll() is None


def _flat_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5_000, 5_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_models_that_do_not_fit_are_listed_with_the_numbers_and_the_others_are_served() -> None:
    try:
        with limited_group(memory_bytes=GIB // 2) as group:
            flags = ("--device", "cpu", "--log-level", "warning")
            with start_process(ROOT / "models", *flags, module=MODULE, cwd=ROOT, env=environment(group)) as process:
                assert process.stdout is not None
                port = int(re.findall(r":(\d+) ", process.stdout.readline())[0])
                ready = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=60).json()
                models = {
                    m["name"]: m for m in httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).json()["models"]
                }
                killed = group.killed()
    except CannotLimit as error:
        pytest.skip(str(error))

    unserved = [name for name, served in ready["models"].items() if not served]
    assert ready["ready"]
    assert unserved
    assert "the container's limit of 536 MB" in json.dumps(models)
    assert killed == 0


def test_on_an_empty_folder_the_server_is_not_ready_says_why_and_becomes_ready_with_the_first_model(
    tmp_path: Path,
) -> None:
    with program(tmp_path, "--rescan-seconds", "0.05") as (process, address, _):
        line = read_until(process.stderr, "no models")
        before = httpx.get(f"{address}/health/ready")
        live = httpx.get(f"{address}/health/live")
        publish(tmp_path, "credit", CREDIT, credit_graph())
        wait_until(lambda: httpx.get(f"{address}/health/ready").status_code == 200, timeout_s=60)
        answer = httpx.post(f"{address}/v1/models/credit/predict", json=ROW, timeout=60)

    assert json.loads(line)["folder"] == str(tmp_path)
    assert before.status_code == 503
    assert before.json()["reason"].startswith(f"The folder of models contains none: {tmp_path}.")
    assert live.status_code == 200
    assert answer.status_code == 200


def test_a_volume_that_is_mounted_over_the_empty_folder_later_is_served(tmp_path: Path) -> None:
    folder, volume = tmp_path / "models", tmp_path / "volume"
    folder.mkdir()
    publish(volume, "colours", COLOURS, colours_graph())

    with program(folder, "--rescan-seconds", "0.05") as (_, address, _):
        folder.rename(tmp_path / "below")  # What a mount does to the path: another folder is found there.
        shutil.move(volume, folder)
        wait_until(lambda: httpx.get(f"{address}/health/ready").status_code == 200, timeout_s=60)

        assert httpx.get(f"{address}/health/ready").json()["models"] == {"colours": True}


def test_a_machine_without_free_memory_at_start_serves_once_there_is_some(start: Start, tmp_path: Path) -> None:
    meminfo = tmp_path / "proc" / "meminfo"
    meminfo.parent.mkdir()
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 10000 kB\n")
    server = start(host=HostMemory(tmp_path))
    url = "/v1/models/credit/predict"

    refused = server.client.post(url, json=ROW)
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n")

    assert refused.json()["error"]["code"] == "overloaded"
    wait_until(lambda: server.client.post(url, json=ROW).status_code == 200, timeout_s=60)


def test_variables_of_a_kubernetes_service_of_the_same_name_do_not_change_the_port(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SEVENFOLD_PORT": "tcp://10.96.0.7:80",
        "SEVENFOLD_PORT_80_TCP": "tcp://10.96.0.7:80",
        "SEVENFOLD_PORT_80_TCP_PROTO": "tcp",
        "SEVENFOLD_SERVICE_HOST": "10.96.0.7",
        "SEVENFOLD_SERVICE_PORT": "80",
        "SEVENFOLD_SERVICE_PORT_HTTP": "80",
    }.items():
        monkeypatch.setenv(name, value)

    with started(tiny_models) as process:
        warning = json.loads(read_until(process.stderr, "Kubernetes Service"))
        assert process.stdout is not None
        greeting = process.stdout.readline()

    assert "enableServiceLinks: false" in warning["message"]
    assert "SEVENFOLD_PORT" in warning["variables"]
    assert greeting.startswith("Sevenfold serves 2 models at http://127.0.0.1:")
