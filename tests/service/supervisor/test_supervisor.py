"""The supervisor with processes that do nothing but speak to it: what it does when they end, hang or disagree."""

import subprocess
import sys

from tests.service.program import ROOT

PRELUDE = """
import json, os, signal, struct, sys, time
from service.supervisor.supervisor import Supervisor

def send(seat, message):
    body = json.dumps(message).encode()
    seat.connection.sendall(struct.pack("!I", len(body)) + body)

def receive(seat):
    def read(size):
        data = b""
        while len(data) < size:
            part = seat.connection.recv(size - len(data))
            if not part:
                os._exit(0)
            data += part
        return data
    return json.loads(read(struct.unpack("!I", read(4))[0]))

def answer_until_stopped(seat, answer, on_all_loaded=lambda: None):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    send(seat, {"kind": "created"})
    send(seat, {"kind": "loaded"})
    send(seat, {"kind": "serving"})
    while True:
        message = receive(seat)
        if message["kind"] == "query":
            send(seat, {"kind": "reply", "id": message["id"], "value": answer(message["query"])})
        elif message["kind"] == "all_loaded":
            on_all_loaded()
        elif message["kind"] == "answer":
            print("answer", json.dumps(message["value"]), flush=True)
            os.kill(os.getppid(), signal.SIGTERM)
"""


def run(body: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + body]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=timeout_s)


def test_a_process_that_cannot_start_at_all_ends_the_program_with_its_status() -> None:
    ended = run("""
def process(seat):
    print("started", seat.index, flush=True)
    return 2
sys.exit(Supervisor(3, process, stop_s=1).run())
""")

    assert ended.returncode == 2
    assert ended.stdout == "started 0\n"


def test_processes_that_end_before_they_can_serve_are_given_up_with_a_message() -> None:
    ended = run("""
import logging
logging.basicConfig(level="INFO")
def process(seat):
    send(seat, {"kind": "created"})
    return 3
sys.exit(Supervisor(1, process, stop_s=1, first_delay_s=0.01).run())
""")

    assert ended.returncode == 70
    assert ended.stderr.count("another one is started") == 4
    assert "giving up: server processes end before they have served for a minute" in ended.stderr


def test_a_process_that_ends_is_replaced_and_the_others_stay() -> None:
    ended = run("""
def process(seat):
    print(seat.index, seat.is_replacement, flush=True)
    if seat.index == 1 and not seat.is_replacement:
        send(seat, {"kind": "created"})
        send(seat, {"kind": "loaded"})
        receive(seat)
        os.kill(os.getpid(), signal.SIGKILL)
    if seat.is_replacement:
        os.kill(os.getppid(), signal.SIGTERM)
    answer_until_stopped(seat, lambda query: None)
sys.exit(Supervisor(2, process, stop_s=1).run())
""")

    assert ended.returncode == 0
    assert sorted(ended.stdout.splitlines()) == ["0 False", "1 False", "1 True"]


def test_a_change_that_one_process_cannot_make_is_undone_in_the_others_and_told() -> None:
    ended = run("""
def process(seat):
    def answer(query):
        if query["what"] == "restore":
            print("restored", seat.index, query["choices"], flush=True)
        if query["what"] == "change":
            problem = "No memory." if seat.index == 1 else None
            return {"problem": problem, "choices": {"after": {}}, "before": {"before": {}}}
    def ask():
        if seat.index == 0:
            send(seat, {"kind": "change", "id": 7, "change": {"action": "load", "name": "a", "version": "1"}})
    answer_until_stopped(seat, answer, ask)
sys.exit(Supervisor(2, process, stop_s=1).run())
""")

    assert ended.returncode == 0
    assert "restored 0 {'before': {}}" in ended.stdout
    answers = [line for line in ended.stdout.splitlines() if line.startswith("answer")]
    assert answers == ['answer "No memory. (process 1 of 2; the change was undone in the others)"']


def test_processes_that_do_not_stop_in_time_are_killed() -> None:
    ended = run("""
def process(seat):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send(seat, {"kind": "created"})
    os.kill(os.getppid(), signal.SIGTERM)
    while True:
        time.sleep(60)
sys.exit(Supervisor(1, process, stop_s=0.1, kill_margin_s=0.2).run())
""")

    assert ended.returncode == 70
    assert "it did not stop in time" in ended.stderr


def test_a_machine_without_room_for_processes_is_asked_a_few_times_and_then_given_up() -> None:
    ended = run("""
import logging
logging.basicConfig()
def fork():
    raise OSError(11, "Resource temporarily unavailable")
os.fork = fork
sys.exit(Supervisor(2, lambda seat: 0, stop_s=1, first_delay_s=0.01).run())
""")

    assert ended.returncode == 70
    assert 1 < ended.stderr.count("cannot be started; it is tried again") < 10
    assert "giving up" in ended.stderr


def test_a_signal_that_comes_while_a_process_is_forked_reaches_it() -> None:
    ended = run("""
real_fork = os.fork
def fork():
    pid = real_fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getppid(), signal.SIGTERM)
    return pid
os.fork = fork
def process(seat):
    time.sleep(60)
    return 0
sys.exit(Supervisor(1, process, stop_s=20, kill_margin_s=20).run())
""")

    assert ended.returncode == 0


def test_ctrl_c_before_a_process_handles_it_is_a_clean_stop() -> None:
    ended = run("""
def process(seat):
    send(seat, {"kind": "created"})
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
    return 0
sys.exit(Supervisor(1, process, stop_s=20, kill_margin_s=20).run())
""")

    assert ended.returncode == 0


def test_the_supervisor_sleeps_while_a_process_that_has_closed_its_channel_ends() -> None:
    ended = run("""
def process(seat):
    send(seat, {"kind": "created"})
    seat.connection.close()
    os.kill(os.getppid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(2)
    return 0
Supervisor(1, process, stop_s=20).run()
print(time.process_time())
""")

    assert float(ended.stdout) < 1.0


def test_a_process_that_has_loaded_during_a_change_is_told_what_to_serve_when_the_change_is_made() -> None:
    ended = run("""
changed = []
def process(seat):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    send(seat, {"kind": "created"})
    if seat.index == 1:
        time.sleep(0.5)
    send(seat, {"kind": "loaded"})
    while True:
        message = receive(seat)
        if message["kind"] == "serve":
            print("serve", seat.index, message["choices"], flush=True)
            send(seat, {"kind": "serving"})
            if seat.index == 0:
                send(seat, {"kind": "change", "id": 7, "change": {"action": "load", "name": "a", "version": "1"}})
            else:
                os.kill(os.getppid(), signal.SIGTERM)
        elif message["kind"] == "query" and message["query"]["what"] == "change":
            time.sleep(1.5)
            changed.append(1)
            value = {"problem": None, "choices": {"a": {"1": "loaded"}}, "before": {}}
            send(seat, {"kind": "reply", "id": message["id"], "value": value})
        elif message["kind"] == "query":
            value = {"a": {"1": "loaded"}} if changed else {}
            send(seat, {"kind": "reply", "id": message["id"], "value": value})
sys.exit(Supervisor(2, process, stop_s=1).run())
""")

    assert "serve 1 {'a': {'1': 'loaded'}}" in ended.stdout
