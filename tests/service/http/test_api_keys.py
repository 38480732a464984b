"""API keys: who is let in, what the others get, the file, and that no key is ever shown."""

import hashlib
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.http.api_keys import ApiKeys, InvalidKey, new_key, parse_keys
from service.process.logging import JsonFormatter
from service.process.watched_files import UnusableFile
from service.settings import InvalidSetting, Settings
from tests.service.conftest import Running, Start, running
from tests.service.program import ROOT, program, read_until
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
URL = "/v1/models/credit/predict"
KEYS = {name: f"{name}-key-{'x' * 30}" for name in ("first", "second", "third", "fourth", "last")}
OPEN = ["/health/live", "/health/ready", "/metrics"]
GUARDED = ["/v1/models", "/v1/models/credit", "/v1/models/nobody", "/docs", "/openapi.json", "/nowhere", "/health"]


def lines_for(*names: str) -> str:
    return "".join(f"{new_key(name, KEYS[name])[1]}\n" for name in names)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def write_keys(folder: Path) -> Path:
    file = folder / "keys"
    file.write_text("# The keys of the tests\n\n" + lines_for(*KEYS))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_keys(tmp_path)


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose keys do not change."""
    file = write_keys(tmp_path_factory.mktemp("keys"))
    with running(Settings(models=tiny_models, api_keys_file=file, rescan_seconds=0)) as server:
        yield server


@pytest.fixture
def own_server(start: Start, file: Path) -> Running:
    """A server whose keys the test may change."""
    return start(api_keys_file=file, rescan_seconds=0)


def check_files(server: Running) -> None:
    for _ in range(2):
        server.service.check_files()


def metric(server: Running, name: str) -> float | None:
    lines = server.client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)


# Requests


@pytest.mark.parametrize("name", KEYS)
def test_every_key_is_accepted_wherever_in_the_file_it_is(server: Running, name: str) -> None:
    answer = server.client.post(URL, json=ROW, headers=bearer(KEYS[name]))

    assert answer.status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_everything_about_models_needs_a_key_whether_it_exists_or_not(server: Running, path: str) -> None:
    response = server.client.get(path)

    assert response.status_code == 401
    assert response.json()["error"]["code"] == "unauthorized"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_metrics_need_no_key_and_ignore_what_is_sent(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 200
    assert server.client.get(path, headers=bearer("wrong")).status_code == 200


def test_a_wrong_key_says_so_and_the_error_has_the_format_of_all_others(server: Running) -> None:
    response = server.client.post(URL, json=ROW, headers=bearer("x" * 40) | {"x-request-id": "abc"})

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert response.json() == {
        "error": {"code": "unauthorized", "message": "The API key is not valid.", "request_id": "abc"}
    }


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b"Bearer"],
        [b"Basic " + KEYS["first"].encode()],
        [KEYS["first"].encode()],
        [b"Bearer " + KEYS["first"].encode() + b" x"],
        [b"Bearer\t" + KEYS["first"].encode()],
        [b"Bearer " + KEYS["first"][:-1].encode()],
        [b"Bearer " + KEYS["first"].upper().encode()],
        [b"Bearer \xff\xfe\xc3\xa4"],
        ["Bearer schlüssel".encode()],
        [b"Bearer " + b"x" * 60_000],
        [b"Bearer " + hashlib.sha256(KEYS["first"].encode()).hexdigest().encode()],
        [b"Bearer " + KEYS["first"].encode(), b"Bearer " + KEYS["last"].encode()],
        [b"Bearer " + KEYS["first"].encode(), b""],
        [b"Bearer " + KEYS["first"].encode() + b",Bearer " + KEYS["last"].encode()],
        [b"Bearer first"],
        [b"Bearer None"],
    ],
)
def test_whatever_else_is_sent_as_authorization_is_rejected(server: Running, values: list[bytes]) -> None:
    response = server.client.get("/v1/models", headers=[(b"authorization", value) for value in values])

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_a_header_beyond_the_limit_of_the_head_is_an_error_of_the_connection(server: Running) -> None:
    response = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 70_000)

    assert response.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer  "])
def test_the_scheme_may_be_written_in_any_case(server: Running, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {KEYS['second']}"}

    assert server.client.get("/v1/models", headers=headers).status_code == 200


def test_rejections_are_counted_without_the_names_of_models_that_are_asked_for(own_server: Running) -> None:
    server = own_server
    for model in ("credit", "nobody"):
        server.client.post(f"/v1/models/{model}/predict", json=ROW)
    text = server.client.get("/metrics").text

    assert 'sevenfold_rejected_total{model="none",reason="unauthorized"} 2.0' in text
    assert 'sevenfold_requests_total{model="none",status="401",version="none"} 2.0' in text
    assert "nobody" not in text
    assert 'model="credit",status="401"' not in text


def exchange(server: Running, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(data)
        return connection.makefile("rb").read()


def test_a_client_that_waits_for_permission_to_send_its_body_gets_401_and_no_permission(server: Running) -> None:
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 20000000\r\n\r\n"

    response = exchange(server, head.encode())  # Returns when the server has closed the connection.

    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in response
    assert b"connection: close" in response


def test_the_body_of_a_rejected_request_is_neither_waited_for_nor_kept(server: Running) -> None:
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        early = connection.recv(65536)
        while b"}}" not in early:  # Head and body may come one after the other.
            early += connection.recv(65536)
        connection.sendall(b"x" * 20_000_000)
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        late = connection.makefile("rb").read()

    assert early.startswith(b"HTTP/1.1 401 ")
    assert late.startswith(b"HTTP/1.1 200 ")
    assert server.service.body_budget.used_bytes == 0


def test_the_log_has_the_name_of_the_key_and_neither_log_nor_metrics_have_a_key(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        server.client.post(URL, json=ROW, headers=bearer(KEYS["third"]))
        server.client.post(URL, json=ROW, headers=bearer("wrong-key-" + "y" * 30))
        server.client.post(f"{URL}?key=1", data={"rows": "["}, headers=bearer(KEYS["third"]))
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith(("service", "uvi"))]
    everything = "\n".join(lines) + server.client.get("/metrics").text

    answered = [json.loads(line) for line in lines if '"service.request"' in line]
    assert [(line["status"], line.get("key")) for line in answered if line["message"].startswith("POST")] == [
        (200, "third"),
        (401, None),
        (415, "third"),
    ]
    assert "x" * 30 not in everything
    assert "y" * 30 not in everything


def test_without_the_setting_no_request_needs_a_key(start: Start) -> None:
    server = start(rescan_seconds=0)

    assert server.client.post(URL, json=ROW, headers=bearer("anything")).status_code == 200
    assert metric(server, "sevenfold_api_keys") is None


def test_the_openapi_document_says_that_a_key_is_needed(server: Running) -> None:
    document = server.client.get("/openapi.json", headers=bearer(KEYS["first"])).json()

    (scheme,) = document["security"][0]
    assert document["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    assert document["paths"]["/health/live"]["get"]["security"] == []
    assert "401" in document["paths"][URL]["post"]["responses"]


# Operators


def test_changes_need_the_token_of_operators_and_no_api_key(start: Start, file: Path) -> None:
    server = start(api_keys_file=file, rescan_seconds=0, admin=True, admin_token="operator")  # noqa: S106 -- of this test
    url = "/v1/models/credit/versions/1/promote"

    with_token = server.client.post(url, headers=bearer("operator"))
    with_key = server.client.post(url, headers=bearer(KEYS["first"]))
    models_with_token = server.client.get("/v1/models", headers=bearer("operator"))

    assert (with_token.status_code, with_key.status_code, models_with_token.status_code) == (200, 401, 401)


def test_changes_that_are_not_allowed_at_all_need_a_key_to_be_told_so(server: Running) -> None:
    url = "/v1/models/credit/versions/1/promote"

    assert server.client.post(url).status_code == 401
    assert server.client.post(url, headers=bearer(KEYS["first"])).status_code == 403


def test_keys_without_a_token_for_operators_who_may_change_versions_are_an_error(start: Start, file: Path) -> None:
    with pytest.raises(InvalidSetting, match="SEVENFOLD_ADMIN_TOKEN"):
        start(api_keys_file=file, admin=True)


# The file


def test_keys_that_are_added_and_removed_take_effect_while_the_server_runs(own_server: Running, file: Path) -> None:
    server = own_server
    added = KEYS["first"].replace("x", "z")

    file.write_text(lines_for("second") + new_key("new", added)[1])
    check_files(server)

    statuses = {
        name: server.client.get("/v1/models", headers=bearer(key)).status_code
        for name, key in {"new": added, "second": KEYS["second"], "first": KEYS["first"]}.items()
    }
    assert statuses == {"new": 200, "second": 200, "first": 401}
    assert metric(server, "sevenfold_api_keys") == 2


def test_the_last_valid_keys_stay_in_force_when_the_file_becomes_invalid_or_vanishes(
    own_server: Running, file: Path
) -> None:
    server = own_server

    for change in (lambda: file.write_text("nonsense"), lambda: file.write_text("# nothing"), file.unlink):
        change()
        check_files(server)
        check_files(server)

    assert server.client.get("/v1/models", headers=bearer(KEYS["last"])).status_code == 200
    assert server.client.get("/v1/models").status_code == 401
    assert metric(server, "sevenfold_api_keys") == 5
    assert metric(server, 'sevenfold_reload_failures_total{file="api_keys"}') == 3


PATH = Path("keys")
LINE = f"a sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys contains no keys. A key is a line NAME sha256:HASH; 'python -m service new-key NAME' prints such a"),
        ("# only comments\n\n", "keys contains no keys."),
        (f"{LINE}\nsecret-key-in-plain-text", "keys, line 2: this is not NAME sha256:HASH;"),
        (f"{LINE}\n{LINE.upper()} x", "keys, line 2: this is not NAME sha256:HASH;"),
        (f"{LINE[:-1]}", "keys, line 1: this is not NAME sha256:HASH;"),
        (f"ä sha256:{'0' * 64}", "keys, line 1: this is not NAME sha256:HASH;"),
        (f"a md5:{'0' * 32}", "keys, line 1: this is not NAME sha256:HASH;"),
        (f"\n{LINE}\na sha256:{'1' * 64}", "keys, line 3: this name is on an earlier line, too; remove one of them."),
        (f"{LINE}\nb sha256:{'0' * 64}", "keys, line 2: this key is on an earlier line, too; remove one of them."),
        ("\n".join(f"k{i} sha256:{i:064x}" for i in range(1001)), "keys: there are more than 1,000 keys."),
    ],
)
def test_a_file_that_is_wrong_is_described_by_its_line_and_not_quoted(text: str, message: str) -> None:
    with pytest.raises(UnusableFile) as caught:
        parse_keys(text.encode(), PATH)

    assert str(caught.value).startswith(message)
    assert not any(part in str(caught.value) for part in ("secret", "00000000", "11111111"))


def test_a_file_in_another_encoding_is_refused() -> None:
    with pytest.raises(UnusableFile, match="is not a text in UTF-8"):
        parse_keys(LINE.encode("utf-16"), PATH)


def test_files_of_windows_and_spaces_around_a_line_are_accepted() -> None:
    keys = parse_keys(f"\ufeff# x\r\n  {LINE}\t\r\n\r\nb\t sha256:{'F' * 64}\r\n".encode(), PATH)

    assert keys == {"a": bytes(32), "b": b"\xff" * 32}


# New keys


def test_a_new_key_is_long_random_and_accepted() -> None:
    key, line = new_key("mobile-app")
    keys = ApiKeys(PATH)
    keys.use((line.encode(),))

    assert keys.name_of(key.encode()) == "mobile-app"
    assert len(key) >= 32 + len("sevenfold_")
    assert new_key("mobile-app")[0] != key
    assert key not in line


@pytest.mark.parametrize("key", ["hunter2", "x" * 31, "x" * 513, "x" * 40 + " ", "ä" * 40])
def test_a_key_of_ones_own_that_could_be_guessed_or_not_be_sent_is_refused_without_quoting_it(key: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        new_key("a", key)

    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["", "two words", "#a", "x" * 65, "ä"])
def test_a_name_that_the_file_could_not_contain_is_refused(name: str) -> None:
    with pytest.raises(InvalidKey, match="A name has"):
        new_key(name)


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_the_line_for_the_file_and_shows_the_key_apart() -> None:
    ended = run("new-key", "mobile-app")

    key = ended.stderr.split()[-1]
    assert ended.returncode == 0
    assert ended.stdout == new_key("mobile-app", key)[1] + "\n"


def test_the_command_hashes_a_key_that_is_piped_to_it_and_does_not_repeat_it() -> None:
    ended = run("new-key", "mobile-app", "--stdin", stdin=KEYS["first"] + "\n")

    assert ended.stdout == new_key("mobile-app", KEYS["first"])[1] + "\n"
    assert KEYS["first"] not in ended.stderr
    assert run("new-key", "mobile-app", "--stdin", stdin="secret\n").returncode == 2


# The program


@pytest.mark.parametrize("contents", [None, "mobile-app the-key-itself"])
def test_the_program_does_not_start_with_a_file_that_is_missing_or_wrong(tmp_path: Path, contents: str | None) -> None:
    file = tmp_path / "keys"
    if contents:
        file.write_text(contents)

    ended = run("--port", "0", "--api-keys-file", str(file))

    assert ended.returncode == 2
    assert str(file) in ended.stderr
    assert "the-key-itself" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_program_notices_a_change_by_itself_and_never_prints_a_key(tiny_models: Path, file: Path) -> None:
    def status(key: str) -> int:
        return httpx.post(f"{address}{URL}", json=ROW, headers=bearer(key)).status_code

    file.write_text(lines_for("first"))
    with program(tiny_models, "--api-keys-file", str(file), "--log-level", "debug") as (process, address, greeting):
        before = status(KEYS["first"]), status(KEYS["second"])
        file.write_text(lines_for("second"))
        wait_until(lambda: status(KEYS["second"]) == 200)
        after = status(KEYS["first"])
        file.unlink()
        error = json.loads(read_until(process.stderr, "cannot be used"))
        last = status(KEYS["second"])
        process.terminate()
        output = greeting + "".join(process.communicate(timeout=60))

    assert (before, after, last) == ((200, 401), 401, 200)
    assert (error["level"], error["file"]) == ("error", "api_keys")
    assert 'curl -H "Authorization: Bearer $API_KEY" -H' in greeting
    assert "x" * 30 not in output
