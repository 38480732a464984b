"""The program over HTTPS: both ports, the greeting, a certificate that changes, and what keeps it from starting."""

import json
import signal
from datetime import timedelta
from pathlib import Path

import httpx

from loadtests.server import free_port
from tests.service.certificates import Authority
from tests.service.program import program, read_until
from tests.service.test_main import EXIT_TIMEOUT_S, ROW, run_to_its_end


def test_the_program_serves_https_on_both_ports_and_notices_a_new_certificate(
    tiny_models: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    authority.issue(valid_for=timedelta(days=-1))
    admin_port = free_port()
    flags = ["--tls-cert", str(authority.cert), "--tls-key", str(authority.key), "--admin-port", str(admin_port)]

    with (
        program(tiny_models, *flags) as (process, address, greeting),
        httpx.Client(verify=authority.trust()) as client,
    ):
        warning = json.loads(read_until(process.stderr, "the certificate has expired"))
        authority.issue()
        read_until(process.stderr, "a changed file is in use")
        main, admin = (url.replace("http://", "https://") for url in (address, f"http://127.0.0.1:{admin_port}"))
        answer = client.post(f"{main}/v1/models/credit/predict", json=ROW)
        ready = client.get(f"{admin}/health/ready")
        process.send_signal(signal.SIGTERM)

        assert warning["level"] == "warning"
        assert f"at https://127.0.0.1:{main.rpartition(':')[2]}    " in greeting
        assert f"metrics: https://127.0.0.1:{admin_port})" in greeting
        assert (answer.status_code, ready.status_code) == (200, 200)
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_a_certificate_that_cannot_be_used_keeps_the_program_from_starting(tiny_models: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue()
    authority.key.write_text("no key")
    flags = ["--tls-cert", str(authority.cert), "--tls-key", str(authority.key)]

    ended = run_to_its_end("--models", str(tiny_models), "--port", "0", *flags)

    assert ended.returncode == 2
    assert f"error: {authority.key} contains no private key in PEM format." in ended.stderr
    assert "Traceback" not in ended.stderr
