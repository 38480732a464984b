"""The supervisor: starts the server processes, replaces those that end, and passes messages between them.

It is the process that was started, has one thread, and serves nobody. It has imported the program before it forks, so
that a process starts without importing anything and shares that memory. It must not start a thread or load a model
itself: neither would survive a fork.

A process that ends is replaced: at once the first time, later with growing delays. If none could serve for several
attempts, the supervisor gives up. A process that does not answer is killed, and one whose liveness fails for long is
told to stop, as an orchestrator would do with a container.
"""

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import FrameType
from typing import Any

from service.process.watchdog import EXIT_BROKEN
from service.supervisor.channel import Channel, ChannelClosed, Message
from service.supervisor.member import Seat
from service.supervisor.merging import Families, cumulative, merge

_LOG = logging.getLogger(__name__)
_TICK_S = 2.0
"""How often each process is asked for its metrics and its liveness."""
_MAX_UNANSWERED = 15
"""Ticks without an answer after which a process is killed. They are counted in ticks and not in seconds, so that a
machine that sleeps kills nothing."""
_MAX_FAILING = 15
"""Ticks in a row with a failing liveness after which a process is replaced."""
_GATHER_S = 2.5
_STABLE_S = 60.0
"""A process that has served for so long did not fail to start."""
_MAX_FAILURES = 5
"""Processes that end in a row without having served before the supervisor gives up, if no other one serves."""
FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_CHANGE_S = 840.0
_MAX_DECISIONS = 1_000
KILL_MARGIN_S = 12.0
"""How long processes may take for their exit beyond draining and grace before they are killed."""

RunProcess = Callable[[Seat], int]
"""Serves in a process that was forked, and returns its exit status."""


@dataclass(eq=False)
class _Process:
    """A server process."""

    seat: Seat
    pid: int
    channel: Channel
    started_at: float
    is_created: bool = False
    """Whether it has got past everything that settings could be wrong about."""
    is_loaded: bool = False
    serving_since: float | None = None
    metrics: Families = field(default_factory=list)
    unanswered: int = 0
    failing: int = 0

    @property
    def index(self) -> int:
        return self.seat.index

    @property
    def exposed(self) -> Families:
        """The metrics; of a replacement that does not accept connections yet, those that concern the past."""
        is_waiting = self.seat.is_replacement and self.serving_since is None
        return cumulative(self.metrics) if is_waiting else self.metrics


@dataclass(eq=False)
class _Place:
    """Where there is to be a process: the one that is there, or when the next one is started."""

    index: int
    process: _Process | None = None
    failures: int = 0
    start_at: float | None = None
    has_been_loaded: bool = False


@dataclass(eq=False)
class _Gathering:
    """A question to several processes, until all have answered, or have ended, or the time is over."""

    waiting: set[_Process]
    ends_at: float
    on_done: Callable[[dict[int, Any]], None]
    values: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """A change of what is served that a process was asked for."""

    process: _Process
    id: int
    change: Message


class Supervisor:
    """Runs several server processes until it is told to stop.

    Args:
        processes: how many.
        run: what each process runs.
        stop_s: how long draining and grace may take together after a signal to stop, in seconds.
        kill_margin_s: how long their exit may take beyond that before they are killed.
        first_delay_s: how long to wait before a process is started again that has failed to start twice; each further
            time it is twice as long, up to half a minute.
        clock: the time in seconds; only differences matter.
    """

    def __init__(
        self,
        processes: int,
        run: RunProcess,
        *,
        stop_s: float,
        kill_margin_s: float = KILL_MARGIN_S,
        first_delay_s: float = FIRST_DELAY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_process = run
        self._stop_s = stop_s
        self._kill_margin_s = kill_margin_s
        self._first_delay_s = first_delay_s
        self._clock = clock
        self._places = [_Place(index) for index in range(processes)]
        self._selector = selectors.DefaultSelector()
        self._gatherings: dict[int, _Gathering] = {}
        self._ids = count()
        self._signals: list[int] = []
        self._is_stopping = False
        self._kill_at: float | None = None
        self._exit_codes: list[int] = []
        self._ended_metrics: Families = []
        self._restarts = 0
        self._changes: list[_Change] = []
        self._is_changing = False
        self._loaded_meanwhile: list[_Process] = []
        """Processes that have loaded their models during a change, and are not part of it."""
        self._choices: dict[str, Any] = {}
        """What operators have chosen, by model and version, for processes that start later."""
        self._decisions: dict[str, Message] = {}
        """What became of shadow versions, by name, version and checksum."""
        self._all_loaded = False
        self._next_tick = 0.0

    def run(self) -> int:
        """Run until all processes have ended, and return the exit status.

        That is 0 after a clean stop, the status of the first process if it could not start at all, and 70 if processes
        did not stop in time, or none could serve any more.
        """
        wakeup, self._wakeup_writer = socket.socketpair()
        wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self._wakeup = wakeup
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        self._selector.register(wakeup, selectors.EVENT_READ, None)
        self._next_tick = self._clock() + _TICK_S
        self._start(self._places[0])
        while any(place.process is not None or place.start_at is not None for place in self._places):
            for key, events in self._selector.select(self._seconds_to_next_timer()):
                if key.data is None:
                    with suppress(BlockingIOError):
                        wakeup.recv(4096)
                else:
                    self._on_ready(key.data, events)
            self._forward_signals()
            self._collect_ended()
            self._run_timers()
        return max(self._exit_codes, default=0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    @property
    def _processes(self) -> list[_Process]:
        return [place.process for place in self._places if place.process is not None]

    # Starting and ending processes

    def _start(self, place: _Place) -> None:
        place.start_at = None
        ours, theirs = socket.socketpair()
        # A signal that reaches the new process before its handlers are its own would be lost.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:  # A limit on processes, or no memory.
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            ours.close()
            theirs.close()
            self._on_fork_failed(place, error)
            return
        seat = Seat(place.index, len(self._places), theirs, is_replacement=place.has_been_loaded)
        if not pid:
            self._run_child(seat, ours, blocked)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        place.process = process = _Process(seat, pid, Channel(ours), self._clock())
        self._selector.register(ours, selectors.EVENT_READ, process)

    def _on_fork_failed(self, place: _Place, error: OSError) -> None:
        place.failures += 1
        fields: dict[str, Any] = {"process": place.index, "reason": error.strerror, "attempts": place.failures}
        if place.failures >= _MAX_FAILURES and all(other.serving_since is None for other in self._processes):
            _LOG.critical("giving up: no server process can be started", extra={"fields": fields})
            self._exit_codes.append(EXIT_BROKEN)
            self._stop(signal.SIGTERM)
            return
        delay_s = max(self._first_delay_s, self._start_later(place))
        place.start_at = self._clock() + delay_s
        _LOG.error(
            "a server process cannot be started; it is tried again", extra={"fields": fields | {"in_s": delay_s}}
        )

    def _run_child(self, seat: Seat, ours: socket.socket, unblocked: Iterable[signal.Signals | int]) -> None:
        """Serve, in the process that was forked, and end it; does not return."""
        code = EXIT_BROKEN
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            os.setpgid(0, 0)  # Ctrl-C reaches the supervisor alone, which tells the processes.
            ours.close()
            self._selector.close()
            self._wakeup.close()
            self._wakeup_writer.close()
            for process in self._processes:
                process.channel.close()
            code = self._run_process(seat)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else EXIT_BROKEN
        except BaseException:
            _LOG.critical("a server process failed", exc_info=True)
        finally:
            logging.shutdown()
            os._exit(code)

    def _collect_ended(self) -> None:
        for place in self._places:
            if place.process is None:
                continue
            pid, status = os.waitpid(place.process.pid, os.WNOHANG)
            if pid:
                self._on_ended(place, place.process, os.waitstatus_to_exitcode(status))

    def _on_ended(self, place: _Place, process: _Process, code: int) -> None:
        self._read(process)  # The last that it has said.
        with suppress(KeyError, ValueError):  # It has closed its end before.
            self._selector.unregister(process.channel.socket)
        process.channel.close()
        place.process = None
        self._ended_metrics = merge([cumulative(process.metrics)], self._ended_metrics)
        for gathering in list(self._gatherings.values()):
            gathering.waiting.discard(process)
        if self._is_stopping:
            # By one of these signals: it was told to stop before it could handle it.
            was_told = code in (-signal.SIGTERM, -signal.SIGINT)
            self._exit_codes.append(0 if was_told else EXIT_BROKEN if code < 0 else code)
            return
        if not process.is_created and not any(other.is_created for other in self._processes) and not self._restarts:
            self._exit_codes.append(code if code > 0 else EXIT_BROKEN)  # It has said itself what is wrong.
            self._stop(signal.SIGTERM)
            return
        self._replace(place, process, code)

    def _replace(self, place: _Place, process: _Process, code: int) -> None:
        now = self._clock()
        self._restarts += 1
        has_served = process.serving_since is not None and now - process.serving_since >= _STABLE_S
        place.failures = 0 if has_served else place.failures + 1
        ending = f"signal {-code}" if code < 0 else f"exit status {code}"
        fields: dict[str, Any] = {"process": place.index, "pid": process.pid, "ended_with": ending}
        if place.failures >= _MAX_FAILURES and all(other.serving_since is None for other in self._processes):
            text = "giving up: server processes end before they have served for a minute; the log above says why"
            _LOG.critical(text, extra={"fields": fields | {"attempts": place.failures}})
            self._exit_codes.append(EXIT_BROKEN)
            self._stop(signal.SIGTERM)
            return
        delay_s = self._start_later(place)
        _LOG.error("a server process has ended; another one is started", extra={"fields": fields | {"in_s": delay_s}})

    def _start_later(self, place: _Place) -> float:
        """Start a process in this place after a delay, which is returned, in seconds."""
        delay_s = 0.0 if place.failures <= 1 else min(_MAX_DELAY_S, self._first_delay_s * 2 ** (place.failures - 2))
        place.start_at = self._clock() + delay_s
        return delay_s

    # Stopping

    def _forward_signals(self) -> None:
        while self._signals:
            self._stop(self._signals.pop(0))

    def _stop(self, number: int) -> None:
        """Tell all processes to stop, and start no others. The second time, they do not wait for their requests."""
        self._is_stopping = True
        self._kill_at = self._kill_at or self._clock() + self._stop_s + self._kill_margin_s
        for place in self._places:
            place.start_at = None
            if place.process is not None:
                with suppress(ProcessLookupError):
                    os.kill(place.process.pid, number)

    def _kill(self, process: _Process, reason: str) -> None:
        _LOG.critical("killing a server process: %s", reason, extra={"fields": {"process": process.index}})
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)

    # Timers

    def _seconds_to_next_timer(self) -> float:
        if any(not gathering.waiting for gathering in self._gatherings.values()):
            return 0.0
        times = [self._next_tick, *(place.start_at for place in self._places if place.start_at is not None)]
        times += [gathering.ends_at for gathering in self._gatherings.values()]
        times += [] if self._kill_at is None else [self._kill_at]
        return max(0.0, min(times) - self._clock())

    def _run_timers(self) -> None:
        now = self._clock()
        for place in self._places:
            if place.start_at is not None and now >= place.start_at:
                self._start(place)
        for number, gathering in list(self._gatherings.items()):
            if not gathering.waiting or now >= gathering.ends_at:
                del self._gatherings[number]
                gathering.on_done(gathering.values)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + self._kill_margin_s
            for process in self._processes:
                self._kill(process, "it did not stop in time")
        if now >= self._next_tick:
            self._next_tick = now + _TICK_S
            self._tick()

    def _tick(self) -> None:
        """Ask each process for its metrics and its liveness, and end those that do not work."""
        for process in self._processes:
            if not process.is_created:
                continue
            process.unanswered += 1
            if process.unanswered == _MAX_UNANSWERED and not self._is_stopping:
                self._kill(process, f"it has not answered for {_MAX_UNANSWERED * _TICK_S:g} s")
            if process.failing == _MAX_FAILING and not self._is_stopping:
                process.failing += 1
                _LOG.error("a server process fails and is replaced", extra={"fields": {"process": process.index}})
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        asked = [process for process in self._processes if process.is_created]
        self._gather(asked, {"what": "tick"}, lambda values: None, _TICK_S)

    # Messages

    def _on_ready(self, process: _Process, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            process.channel.flush()
        if not events & selectors.EVENT_READ or self._read(process):
            self._watch(process)

    def _read(self, process: _Process) -> bool:
        """Handle what a process has said; return whether it can say more."""
        while True:
            try:
                messages = process.channel.receive()
            except ChannelClosed:  # The process ends, and is collected then. Its socket would be ready all the time.
                with suppress(KeyError, ValueError):
                    self._selector.unregister(process.channel.socket)
                return False
            if not messages:
                return True
            for message in messages:
                self._on_message(process, message)

    def _send(self, process: _Process, message: Message) -> None:
        process.channel.send(message)
        self._watch(process)

    def _watch(self, process: _Process) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.channel.has_unsent else 0)
        with suppress(KeyError, ValueError, OSError):  # It has ended.
            self._selector.modify(process.channel.socket, events, process)

    def _on_message(self, process: _Process, message: Message) -> None:
        match message["kind"]:
            case "created":
                self._on_created(process)
            case "loaded":
                self._on_loaded(process)
            case "serving":
                process.serving_since = self._clock()
            case "reply":
                self._on_reply(process, message)
            case "final":
                process.metrics = message["metrics"]
            case "gather":
                self._gather(
                    [other for other in self._processes if other.is_created],
                    message["query"],
                    lambda values: self._answer(process, message, values),
                )
            case "metrics":
                self._gather_metrics(lambda families: self._answer(process, message, families))
            case "change":
                self._changes.append(_Change(process, message["id"], message["change"]))
                self._start_change()
            case "decision":
                self._on_decision(message["decision"])

    def _answer(self, process: _Process, message: Message, value: Any) -> None:
        if process in self._processes:
            self._send(process, {"kind": "answer", "id": message["id"], "value": value})

    def _on_created(self, process: _Process) -> None:
        """Start the other processes when the first one shows that the settings are right."""
        process.is_created = True
        for place in self._places:
            if place.process is None and place.start_at is None and not self._is_stopping:
                place.start_at = self._clock()

    def _on_loaded(self, process: _Process) -> None:
        process.is_loaded = True
        self._places[process.index].has_been_loaded = True
        if self._is_changing:
            self._loaded_meanwhile.append(process)  # It is told what to serve when that is settled.
        else:
            self._tell_what_to_serve(process)
        if not self._all_loaded and all(place.has_been_loaded for place in self._places):
            self._all_loaded = True
        if self._all_loaded:
            for each in self._processes:
                self._send(each, {"kind": "all_loaded"})

    def _tell_what_to_serve(self, process: _Process) -> None:
        others = [other for other in self._processes if other.serving_since is not None and other is not process]
        self._gather(others, {"what": "choices"}, lambda values: self._let_serve(process, values))

    def _let_serve(self, process: _Process, values: dict[int, Any]) -> None:
        """Tell a process what the others have been told, so that it serves the same versions."""
        self._choices = next((value for value in values.values() if value is not None), self._choices)
        if process in self._processes:
            decisions = list(self._decisions.values())
            self._send(process, {"kind": "serve", "choices": self._choices, "decisions": decisions})

    def _on_reply(self, process: _Process, message: Message) -> None:
        value = message["value"]
        if isinstance(value, dict) and "metrics" in value and "failures" in value:  # The answer to a tick.
            process.metrics, process.unanswered = value["metrics"], 0
            process.failing = process.failing + 1 if value["failures"] else 0
            self._choices = self._choices if value["choices"] is None else value["choices"]
        gathering = self._gatherings.get(message["id"])
        if gathering is not None and process in gathering.waiting:
            gathering.waiting.discard(process)
            gathering.values[process.index] = value

    def _gather(
        self,
        processes: Iterable[_Process],
        query: Message,
        on_done: Callable[[dict[int, Any]], None],
        timeout_s: float = _GATHER_S,
    ) -> None:
        number, asked = next(self._ids), set(processes)
        self._gatherings[number] = _Gathering(asked, self._clock() + timeout_s, on_done)
        for process in asked:
            self._send(process, {"kind": "query", "id": number, "query": query})

    def _gather_metrics(self, on_done: Callable[[Families], None]) -> None:
        asked = [process for process in self._processes if process.is_created]

        def merge_all(_: dict[int, Any]) -> None:
            # A process that did not answer in time still counts, with what it has said before.
            families = [process.exposed for process in self._processes if process.metrics]
            on_done(_with_restarts(merge(families, self._ended_metrics), self._restarts))

        self._gather(asked, {"what": "tick"}, merge_all)

    # Changes of what is served, which all processes make, or none

    def _start_change(self) -> None:
        if self._is_changing or not self._changes:
            return
        self._is_changing, change = True, self._changes.pop(0)
        query = {"what": "change", **change.change}
        if change.process not in self._processes:
            self._end_change(change, "The process ended.")
            return

        def on_first(values: dict[int, Any]) -> None:
            first = values.get(change.process.index)
            if first is None or first["problem"] is not None:
                self._end_change(change, "The process ended." if first is None else first["problem"])
                return
            others = [other for other in self._processes if other.is_loaded and other is not change.process]
            self._gather(others, query, lambda others: self._on_changed(change, values | others), _CHANGE_S)

        self._gather([change.process], query, on_first, _CHANGE_S)

    def _on_changed(self, change: _Change, values: dict[int, Any]) -> None:
        problems = {index: value["problem"] for index, value in values.items() if value and value["problem"]}
        if not problems:
            self._choices = next(value["choices"] for value in values.values() if value)
            self._end_change(change, None)
            return
        index, problem = next(iter(problems.items()))
        text = f"{problem} (process {index} of {len(self._places)}; the change was undone in the others)"
        for process in self._processes:
            value = values.get(process.index)
            if value and not value["problem"]:
                undo = {"what": "restore", "choices": value["before"]}
                self._gather([process], undo, lambda values: None, _CHANGE_S)
        self._end_change(change, text)

    def _end_change(self, change: _Change, problem: str | None) -> None:
        self._answer(change.process, {"id": change.id}, problem)
        self._is_changing = False
        waiting, self._loaded_meanwhile = self._loaded_meanwhile, []
        for process in waiting:
            self._tell_what_to_serve(process)
        self._start_change()

    def _on_decision(self, decision: Message) -> None:
        """Have all processes act on the first decision about a shadow version, whichever makes it."""
        key = "/".join(str(decision[part]) for part in ("name", "version", "sha256"))
        first = self._decisions.setdefault(key, decision)
        while len(self._decisions) > _MAX_DECISIONS:
            del self._decisions[next(iter(self._decisions))]
        self._gather([p for p in self._processes if p.is_loaded], {"what": "decide", **first}, lambda values: None)


def _with_restarts(families: Families, restarts: int) -> Families:
    """Return the metrics with the number of processes that were replaced, which only the supervisor knows."""

    def replaced() -> Iterator[dict[str, Any]]:
        for family in families:
            if family["name"] == "sevenfold_process_restarts":
                sample = ["sevenfold_process_restarts_total", {}, float(restarts), None]
                yield {**family, "samples": [sample]}
            else:
                yield family

    return list(replaced())
