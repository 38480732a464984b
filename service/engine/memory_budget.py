"""One account for the memory that requests need, so that no request makes the kernel kill a process of the server.

What the server needs once its models are loaded is known; the rest up to the limit of the container (or of the machine)
is divided in two:

- *held* memory: bodies, decoded inputs that wait, answers that clients have not taken. Whoever finds no room is refused
  at once, because waiting for it would not free any.
- *work* memory: what a decoder, a run on the CPU or an encoder needs while it works. Whoever finds no room waits, in
  the order of arrival over all schedulers, and within its deadline: work ends by itself and gives back what it had.

A decoder is given an allowance that its process cannot exceed (`service/decoding/worker.py`). At the first attempt that
is enough for nearly every file, so that several decoders work at a time; what needs more is decoded again with a larger
one, as with processor time.

All methods belong to one event loop. Nothing here knows tasks, devices or HTTP.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.scheduler import MemoryWaiter

MAX_WORK_BYTES = 1_500_000_000
"""The most memory that a decoder or an encoder is given: some copies of the largest image."""
_MIN_FIRST_BYTES = 48_000_000
"""What the first attempt to decode needs at least: with less, ordinary photos would be decoded twice."""
_BYTES_PER_BODY_BYTE = 4
"""A body is received, cut into its parts, and decoded from base64, which are copies of it."""
_MARGIN = 0.15
"""The fraction of the free memory that is left for what nobody counts: fragments of heaps, sockets, new connections."""
_IDLE_PROCESS_BYTES = 24_000_000
"""What each decoder process keeps while it has nothing to do."""
_HELD_FRACTION = 0.3
_SMALL_BYTES = 2_000_000_000
_RUN_BYTES = 500_000_000
"""What runs on the CPU may need where memory is plentiful; more than any shipped model does."""


@dataclass(frozen=True)
class MemoryPlan:
    """How the free memory is divided, in bytes; infinite where there is more than can ever be needed."""

    held: float = math.inf
    work: float = math.inf

    @property
    def is_tight(self) -> bool:
        """Whether memory is so short that requests may have to wait for it."""
        return math.isfinite(self.work)

    @property
    def is_small(self) -> bool:
        """Whether it is also worth some time to keep the process small, as in a container of 1 or 2 GB."""
        return self.work < _SMALL_BYTES

    @classmethod
    def of(cls, free_bytes: float | None, *, processes: int, started: int = 0) -> "MemoryPlan":
        """Divide what is free once the models are loaded; None if that is unknown.

        Args:
            free_bytes: up to the limit of the container or of the machine.
            processes: the most worker processes that there may be.
            started: how many of them are contained in what is no longer free.
        """
        if free_bytes is None:
            return cls()
        usable = (1 - _MARGIN) * free_bytes - _IDLE_PROCESS_BYTES * max(0, processes - started)
        held = max(0.0, _HELD_FRACTION * usable)
        work = max(0.0, usable - held)
        return cls(held) if work >= processes * MAX_WORK_BYTES + _RUN_BYTES else cls(held, work)


@dataclass(eq=False)
class MemoryBudget:
    """The account of work memory.

    Attributes:
        plan: how much there is; may be replaced when versions have been loaded.
        decoders: how many processes decode at a time; the first attempts of all of them are to fit.
        keeper: the scheduler of runs on the CPU, which leave what they had in the arena of ONNX Runtime for later runs.
        on_shortage: called when others need what is kept there; has it released, and `on_released` called then.
        reserved: bytes that running work may use.
    """

    plan: MemoryPlan = MemoryPlan()
    decoders: int = 1
    keeper: MemoryWaiter | None = None
    on_shortage: Callable[[], None] = lambda: None
    reserved: float = field(default=0, init=False)
    _keeper_reserved: float = field(default=0, init=False)
    _kept: float = field(default=0, init=False)
    """The most that the keeper's runs have needed at a time since it was released."""
    _kept_since_release: float = field(default=0, init=False)
    _is_releasing: bool = field(default=False, init=False)
    _running: int = field(default=0, init=False)
    """Reservations of work that will end, in contrast to work that hangs."""
    _waiting: list[MemoryWaiter] = field(default_factory=list, init=False)

    # What a piece of work may use

    def decoding_bytes(self, attempt: int, body_bytes: int) -> int:
        """Return what a process may use to prepare a request with a body of this size, at this attempt (0 or 1)."""
        if not self.plan.is_tight:
            return MAX_WORK_BYTES
        first = max(_MIN_FIRST_BYTES, self.plan.work / (2 * self.decoders)) + _BYTES_PER_BODY_BYTE * body_bytes
        return round(min(MAX_WORK_BYTES, self.plan.work, first if attempt == 0 else MAX_WORK_BYTES))

    def encoding_bytes(self, output_bytes: int, work: int) -> int:
        """Return what a process may use to make an answer from outputs of this size; `work` as in `Samples.work`."""
        if not self.plan.is_tight:
            return MAX_WORK_BYTES
        needed = _MIN_FIRST_BYTES + 2 * _BYTES_PER_BODY_BYTE * (output_bytes + work)
        return round(min(MAX_WORK_BYTES, self.plan.work, needed))

    # Who uses it

    @property
    def is_unlimited(self) -> bool:
        """Whether there is more than all work together can ever need."""
        return not self.plan.is_tight

    def is_idle_for(self, waiter: MemoryWaiter) -> bool:
        """Return whether nothing would become free for this scheduler if it waited."""
        is_turn = not self._waiting or self._waiting[0] is waiter  # The first one is told when something becomes free.
        return not self._running and is_turn and (waiter is self.keeper or not self._unused_kept)

    def free_for(self, waiter: MemoryWaiter) -> float:
        """Return the bytes that a scheduler may reserve now: none while another one has waited for longer."""
        if self._waiting and self._waiting[0] is not waiter and self.plan.is_tight:
            return 0.0
        return self.plan.work - self.reserved - (0 if waiter is self.keeper else self._unused_kept)

    def reserve(self, waiter: MemoryWaiter, size: float) -> None:
        """Take so many bytes; work that needs more than there is runs while nothing else does."""
        if not size:
            return
        self.reserved += size
        self._running += 1
        if waiter is self.keeper:
            self._keeper_reserved += size
            self._kept = max(self._kept, min(self._keeper_reserved, self.plan.work))
            self._kept_since_release = max(self._kept_since_release, min(self._keeper_reserved, self.plan.work))

    def release(self, waiter: MemoryWaiter, size: float, *, hung: bool = False) -> None:
        """Give back what was taken; those that wait are told. `hung` says whether `give_up` was called before."""
        if not size:
            return
        self.reserved -= size
        self._running -= not hung
        if waiter is self.keeper:
            self._keeper_reserved -= size
        self._wake_first()

    def give_up(self, size: float) -> None:
        """Note that work hangs: it keeps its memory, and nobody should wait for it."""
        if size:
            self._running -= 1
            self._wake_first()

    def wait(self, waiter: MemoryWaiter) -> None:
        """Note that a scheduler waits for memory; it keeps its place until `stop_waiting`."""
        if waiter not in self._waiting:
            self._waiting.append(waiter)
        if waiter is not self.keeper and self._unused_kept and not self._is_releasing:
            self._is_releasing, self._kept_since_release = True, min(self._keeper_reserved, self.plan.work)
            self.on_shortage()

    def on_released(self) -> None:
        """Note that what the keeper's runs have left in memory has been given back, as `on_shortage` asks for."""
        self._is_releasing, self._kept = False, self._kept_since_release
        self._wake_first()

    def stop_waiting(self, waiter: MemoryWaiter) -> None:
        """Note that a scheduler no longer waits, so that it is the turn of the next one."""
        if waiter in self._waiting:
            was_first = self._waiting[0] is waiter
            self._waiting.remove(waiter)
            if was_first:
                self._wake_first()

    @property
    def _unused_kept(self) -> float:
        return max(0.0, self._kept - min(self._keeper_reserved, self.plan.work)) if self.plan.is_tight else 0.0

    def _wake_first(self) -> None:
        if self._waiting:
            self._waiting[0].schedule_dispatch()


_MODEL_BYTES, _BYTES_PER_GRAPH_BYTE = 8_000_000, 6


def model_bytes(graph_bytes: int) -> int:
    """Estimate the memory that a model needs, from the size of its file.

    Weights of 16 bits are kept in 32, prepared by the runtime, and for two sessions.
    """
    return _MODEL_BYTES + _BYTES_PER_GRAPH_BYTE * graph_bytes
