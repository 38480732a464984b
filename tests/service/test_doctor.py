"""`python -m service doctor`: what is right, what is not, and what to do."""

import json
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from service.doctor import Check, run_checks, run_doctor
from service.http.api_keys import new_key
from tests.model_folders import publish
from tests.service.certificates import Authority
from tests.service.program import ROOT, program
from tests.tiny.tabular import CREDIT, credit_graph

GIB = 1 << 30


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "credit", CREDIT, credit_graph())
    return tmp_path / "models"


def machine(root: Path, *, limit: int = GIB, used: int = 50_000_000, quota: str = "50000 100000") -> Path:
    """A folder with what /proc and /sys say in a container."""
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/statm": "100 50 0 0 0 0 0\n",
        "proc/meminfo": "MemTotal:       32000000 kB\nMemAvailable:   30000000 kB\n",
        "sys/fs/cgroup/memory.max": str(limit),
        "sys/fs/cgroup/memory.current": str(used),
        "sys/fs/cgroup/memory.stat": "inactive_file 0\n",
        "sys/fs/cgroup/cpu.max": quota,
        "dev/null": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def checks_of(models: Path, *flags: str, root: Path = Path("/"), **environment: str) -> list[Check]:
    return list(run_checks(["--models", str(models), "--port", "0", *flags], environment, root=root))


def texts(checks: list[Check], area: str, level: str) -> str:
    return " ".join(check.text for check in checks if (check.area, check.level) == (area, level))


def test_a_server_that_would_work_has_no_problems(models: Path) -> None:
    checks = checks_of(models)

    assert [check for check in checks if check.level == "problem"] == []
    assert {check.area for check in checks} == {
        "device",
        "libraries",
        "limits",
        "models",
        "port",
        "service links",
        "settings",
    }
    assert "credit/1: tabular" in texts(checks, "models", "ok")


def test_an_unknown_setting_is_a_problem_with_a_suggestion(models: Path) -> None:
    checks = checks_of(models, SEVENFOLD_MAX_BACH="4")

    assert (
        texts(checks, "settings", "problem") == "Unknown setting SEVENFOLD_MAX_BACH. Did you mean SEVENFOLD_MAX_BATCH?"
    )


def test_values_of_settings_are_not_printed_since_they_may_be_secret(models: Path) -> None:
    checks = checks_of(models, "--admin", "--admin-token=hidden-1", SEVENFOLD_HOST="127.0.0.1")

    assert "--admin-token" in texts(checks, "settings", "ok")
    assert "SEVENFOLD_HOST" in texts(checks, "settings", "ok")
    assert not any("hidden-1" in check.text for check in checks)


def test_variables_of_a_service_of_the_same_name_are_a_warning(models: Path) -> None:
    checks = checks_of(models, SEVENFOLD_PORT="tcp://10.0.0.1:80", SEVENFOLD_SERVICE_HOST="10.0.0.1")

    assert "enableServiceLinks: false" in texts(checks, "service links", "warning")
    assert texts(checks, "settings", "problem") == ""


def test_a_changed_file_of_a_model_is_a_problem(models: Path) -> None:
    graph = models / "credit" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")

    checks = checks_of(models)

    assert "model.onnx is not the file that was published" in texts(checks, "models", "problem")


def test_a_missing_folder_is_a_problem_and_an_empty_one_a_warning(tmp_path: Path) -> None:
    missing, empty = checks_of(tmp_path / "nowhere"), checks_of(tmp_path)

    assert "does not exist" in texts(missing, "models", "problem")
    assert "not ready until one is published" in texts(empty, "models", "warning")


def test_a_port_in_use_is_a_problem(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        checks = checks_of(models, "--port", str(port))

    assert f"Cannot listen on 127.0.0.1:{port}" in texts(checks, "port", "problem")


def test_quota_and_limit_of_a_container_are_explained(models: Path, tmp_path: Path) -> None:
    checks = checks_of(models, root=machine(tmp_path / "container"))

    assert "A quota of 0.5 cores" in texts(checks, "limits", "warning")
    assert "a limit of 1,073 MB" in texts(checks, "limits", "ok")
    assert "wait for each other" in texts(checks, "limits", "ok")


def test_a_limit_below_what_the_models_need_is_a_problem(models: Path, tmp_path: Path) -> None:
    checks = checks_of(models, root=machine(tmp_path / "container", limit=GIB // 8))

    assert "Not all models can be loaded: raise the limit" in texts(checks, "limits", "problem")


def test_a_requested_gpu_that_is_missing_is_a_problem(models: Path) -> None:
    assert "CUDA was requested" in texts(checks_of(models, "--device", "cuda"), "device", "problem")


def test_a_visible_gpu_that_is_not_used_is_a_warning(models: Path, tmp_path: Path) -> None:
    root = machine(tmp_path / "container", quota="max 100000")
    (root / "dev" / "nvidia0").touch()

    assert "A GPU is visible, but it is not used" in texts(checks_of(models, root=root), "device", "warning")


def test_models_are_loaded_only_if_asked(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run_doctor(["--json", "--load", "--models", str(models), "--port", "0"], {})
    report = json.loads(capsys.readouterr().out)

    assert status == 0
    assert report["ok"]
    assert any("loaded in" in check["text"] for check in report["checks"])


def test_the_program_prints_a_line_for_each_check_and_exits_with_1_if_there_is_a_problem(models: Path) -> None:
    shutil.rmtree(models / "credit")
    flags = ["--models", str(models / "credit"), "--port", "0"]

    ended = subprocess.run(
        [sys.executable, "-m", "service", "doctor", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1, ended.stderr
    assert "problem  models: The folder of models does not exist" in ended.stdout
    assert "1 problem(s)" in ended.stdout


def test_files_of_keys_and_certificates_are_checked(models: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue(valid_for=timedelta(days=90))
    (tmp_path / "keys").write_text(new_key("app")[1])
    tls = ["--tls-cert", str(authority.cert), "--tls-key", str(authority.key)]
    flags = [*tls, "--api-keys-file", str(tmp_path / "keys"), "--cors-origins", "https://a.example"]

    checks = checks_of(models, *flags)
    authority.issue(valid_for=timedelta(days=3, hours=1))
    soon = checks_of(models, *tls)
    authority.issue(valid_for=timedelta(days=-1))
    expired = checks_of(models, *tls)
    authority.key.unlink()
    (tmp_path / "keys").unlink()

    assert "1 valid API key(s)" in texts(checks, "access", "ok")
    assert "the certificate is valid for" in texts(checks, "access", "ok")
    assert "https://a.example may use the server" in texts(checks, "access", "ok")
    assert "expires in 3 day(s)" in texts(soon, "access", "warning")
    assert "has expired" in texts(expired, "access", "warning")
    assert "key.pem: No such file" in texts(checks_of(models, *tls), "access", "problem")
    assert "keys: No such file" in texts(checks_of(models, *flags[4:]), "access", "problem")


@pytest.mark.parametrize(
    ("flags", "area", "message"),
    [
        (["--cors-origins", "https://a.example/"], "access", "is not an origin"),
        (["--tls-cert", "cert.pem"], "settings", "needs both"),
        (["--port", "8765", "--admin-port", "8765"], "settings", "must differ"),
        (["--api-keys-file", "keys", "--admin"], "settings", "needs a token of its own"),
        (["--pin", "credit=7"], "models", "selects version 7, which is not in the folder"),
    ],
)
def test_what_the_server_would_refuse_is_a_problem(models: Path, flags: list[str], area: str, message: str) -> None:
    assert message in texts(checks_of(models, *flags), area, "problem")


def test_a_collector_that_traces_cannot_be_sent_to_is_a_problem(models: Path) -> None:
    checks = checks_of(models, OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317")

    assert "must be a URL such as" in texts(checks, "tracing", "problem")


def test_an_admin_port_in_use_is_a_problem(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        checks = checks_of(models, "--admin-port", str(port))

    assert f"Cannot listen on 127.0.0.1:{port}" in texts(checks, "port", "problem")
    assert "--admin-port" in texts(checks, "port", "problem")


def test_beside_the_running_server_its_port_and_its_memory_are_no_problem(models: Path, tmp_path: Path) -> None:
    root = machine(tmp_path / "container", used=GIB - 300_000_000)
    with program(models) as (_, address, _):
        checks = checks_of(models, "--port", address.rpartition(":")[2], root=root)

    assert "is live on port" in texts(checks, "port", "ok")
    assert "beside the running server" in texts(checks, "limits", "ok")
    assert [check for check in checks if check.level == "problem"] == []


def test_the_memory_of_all_processes_is_counted_as_the_server_does(models: Path, tmp_path: Path) -> None:
    # Enough for the largest work of the two decoders alone, but not for that of all five processes.
    root = machine(tmp_path / "container", limit=8 * GIB, quota="200000 100000")

    assert "Requests share the rest" in texts(checks_of(models, root=root), "limits", "ok")


def test_a_folder_that_this_user_may_not_write_to_is_not_called_read_only(models: Path) -> None:
    checks = checks_of(models, root=Path("/proc"))

    assert "The root file system is writable" in texts(checks, "limits", "ok")


def test_a_package_that_is_missing_is_a_problem_and_no_traceback(models: Path) -> None:
    program = (
        "import runpy, sys; sys.modules['onnxruntime'] = sys.modules['uvicorn'] = None; "
        "sys.argv = ['service', 'doctor', *sys.argv[1:]]; runpy.run_module('service', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, "--models", str(models), "--port", "0"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 1, ended.stderr
    assert "problem  device: ONNX Runtime cannot be used" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_torch_is_never_imported() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from service.doctor import run_doctor; run_doctor(['--port', '0'])"
    )

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
