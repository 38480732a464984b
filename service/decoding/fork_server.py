"""A small process that forks worker processes on request.

The server itself must not fork: it has threads, and perhaps a CUDA context. This process has imported the decoders and
nothing else, so that a new worker starts in milliseconds and shares its memory. (The fork server of multiprocessing
needs a folder for its socket, which a read-only file system does not have, and leaves it behind when it is killed.)

The processes ignore SIGINT and SIGTERM, which supervisors may send to a whole group: the server still has requests to
finish then. They end when the server closes its side of their sockets, which the kernel does if the server is killed.
"""

import errno
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import Any

_STATUS = struct.Struct("q")
PROGRAM = "import sys; sys.path[:] = {path}; from service.decoding.fork_server import main; main({control})"
"""The program of the fork server, with placeholders for the search path of modules and the control socket."""
_STOP_TIMEOUT_S = 2.0


class CannotFork(OSError):
    """The system does not allow another process now: a limit on processes is reached, or memory is short."""


@dataclass(eq=False)
class ForkedProcess:
    """A process that was forked for this one.

    Attributes:
        pid: its process id.
        connection: this side of the connection that the process was given.
        exit_code: as in `subprocess`, negative for a signal; None while the process lives, as far as is known.
    """

    pid: int
    connection: "Connection[Any, Any]"
    _status: socket.socket
    exit_code: int | None = None

    def join(self, timeout_s: float) -> int | None:
        """Wait for the process to end and return its exit code; None if it still lives."""
        if self.exit_code is None and _is_readable(self._status, timeout_s):
            status = b""
            with suppress(OSError):  # Another thread has just closed it.
                status = self._status.recv(_STATUS.size)
            if len(status) == _STATUS.size:
                self.exit_code = _STATUS.unpack(status)[0]
            else:  # The fork server has died, and with it the way to learn about this process.
                self._send_kill()
                self.exit_code = -signal.SIGKILL
        return self.exit_code

    def kill(self) -> None:
        """Kill the process if it lives."""
        if self.join(0.0) is None:
            self._send_kill()

    def _send_kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the sockets."""
        self.connection.close()
        self._status.close()


def _is_readable(connection: socket.socket, timeout_s: float) -> bool:
    """Wait for data or the end of the connection."""
    try:
        return bool(wait([connection], timeout_s))  # Unlike `select`, it works with descriptors above 1,023.
    except (OSError, ValueError):  # Another thread has closed it.
        return True


@dataclass(eq=False)
class ForkServer:
    """Starts the fork server when it is first needed, and again if it has died. Methods may be called in any thread.

    Attributes:
        program: what it runs.
        shared: the control socket of one that several servers share, and that another process has started. If it dies,
            each server starts one of its own.
    """

    program: str = PROGRAM
    shared: socket.socket | None = None
    _lock: Lock = field(default_factory=Lock, init=False)
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _control: socket.socket | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._control = self.shared

    def open(self) -> socket.socket:
        """Start the fork server, and return its control socket, for processes that share it. Raises OSError."""
        with self._lock:
            return self._control or self._start()

    def fork(self) -> ForkedProcess:
        """Start a worker process. Raises OSError."""
        with self._lock:
            for attempt in range(2):
                try:
                    return self._fork(self._control or self._start())
                except CannotFork:
                    raise  # The fork server works, and watches the other processes.
                except OSError:
                    self._stop()
                    if attempt:
                        raise
        raise AssertionError("The loop returns or raises.")

    def _fork(self, control: socket.socket) -> ForkedProcess:
        connection, their_connection = socket.socketpair()
        status, their_status = socket.socketpair()
        try:
            with their_connection, their_status:
                socket.send_fds(control, [b"f"], [their_connection.fileno(), their_status.fileno()])
            reply = status.recv(_STATUS.size)
            if len(reply) < _STATUS.size:
                raise ConnectionResetError("The fork server has ended.")
            (pid,) = _STATUS.unpack(reply)
            if pid < 0:
                raise CannotFork(-pid, os.strerror(-pid))
        except OSError:
            connection.close()
            status.close()
            raise
        return ForkedProcess(pid, Connection(connection.detach()), status)

    def _start(self) -> socket.socket:
        control, theirs = socket.socketpair()
        with theirs:
            program = self.program.replace("{path}", repr(sys.path)).replace("{control}", str(theirs.fileno()))
            self._process = subprocess.Popen(  # noqa: S603 -- our own program
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Threads of numerical libraries would not survive a fork, and decoding needs none.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"},
            )
        self._control = control
        return control

    def _stop(self) -> None:
        control, process, self._control, self._process = self._control, self._process, None, None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End the fork server, and with it the idle workers."""
        with self._lock:
            self._stop()


def main(control_fd: int) -> None:
    """Run the fork server until the server closes its side of the control socket."""
    from service.decoding.worker import preload, run  # Here, so that the server itself does not need the decoders.

    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    preload()
    gc.collect()
    gc.freeze()  # A collection would write to objects that all processes share, and each would get a copy of them.
    control = socket.socket(fileno=control_fd)
    wakeup, wakeup_writer = socket.socketpair()
    wakeup_writer.setblocking(False)
    signal.set_wakeup_fd(wakeup_writer.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # The wake-up socket needs a handler.
    statuses: dict[int, socket.socket] = {}
    while True:
        ready = wait([control, wakeup])
        if wakeup in ready:
            wakeup.recv(4096)
            _report_ended(statuses)
        if control in ready:
            request, descriptors, _, _ = socket.recv_fds(control, 1, 2)
            if not request:
                signal.set_wakeup_fd(-1)  # Workers that end now would make Python complain about a closed socket.
                return
            connection_fd, status_fd = descriptors
            status = socket.socket(fileno=status_fd)
            try:
                pid = _fork_worker(run, connection_fd, [control, wakeup, wakeup_writer, status, *statuses.values()])
                statuses[pid] = status
            except OSError as error:
                pid = -(error.errno or errno.EAGAIN)
            os.close(connection_fd)
            with suppress(OSError):
                status.send(_STATUS.pack(pid))


def _fork_worker(run: Callable[[Any], None], connection_fd: int, sockets: list[socket.socket]) -> int:
    """Fork; the child closes the sockets of its parent, serves its connection and exits. Returns the child's id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for inherited in sockets:
            inherited.close()
        run(Connection(connection_fd))
        status = 0
    finally:
        os._exit(status)


def _report_ended(statuses: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with suppress(OSError), statuses.pop(pid) as connection:
                connection.send(_STATUS.pack(os.waitstatus_to_exitcode(status)))
