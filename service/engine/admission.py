"""Who may come in, on what terms, and when those should come again who may not.

A request that cannot be answered within its time is refused before anything is done for it: what waits for the device
and the workers is known, and so is what it takes.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

from service.engine.scheduler import URGENCY, Deadline, Priority, TooLate
from service.errors import DeadlineExceeded, DeviceHung, InvalidRequest, Overloaded
from tasks.contract import Problem

OPTION_FIELDS = ("timeout_ms", "priority")
"""Fields of any request that say how it is to be answered, and not what."""
DEFAULT_SLACK_FACTOR = 20
"""Where nothing else is said, a request is due after so many times what a full batch of its model takes."""
_MIN_TARGET_SECONDS = 0.05
ADMISSION_MARGIN = 0.5
"""Of a full batch: how much earlier than need be those are to be answered that wait. A wait is known no better, and who
is let in at the very last makes batches small, since they must not be late, and everybody behind them late."""
_SMOOTHING = 0.05
_A_TICK_S = 0.002
"""The loop's time may be as old as that."""
_WORTH_COMPARING_S = 0.005
_MAX_CORRECTION = 8.0
_IF_LATE = 2.0


@dataclass(frozen=True)
class RequestOptions:
    """What a client asks for: seconds until the answer, and how urgent it is."""

    timeout_s: float | None = None
    priority: Priority | None = None

    def joined(self, other: "RequestOptions") -> "RequestOptions":
        """Both: the shorter time, and the priority of `other` where it has one."""
        times = [time for time in (self.timeout_s, other.timeout_s) if time is not None]
        return RequestOptions(min(times, default=None), other.priority or self.priority)

    def __bool__(self) -> bool:
        return self != RequestOptions()


def parse_options(
    fields: Mapping[str, Any], *, names: tuple[str, ...] = OPTION_FIELDS
) -> tuple[Mapping[str, Any], RequestOptions]:
    """The fields without those that are options, and the options. Raises InvalidRequest."""
    found = {name: fields[name] for name in names if name in fields}
    if not found:
        return fields, RequestOptions()
    rest = {name: value for name, value in fields.items() if name not in found}
    return rest, RequestOptions(_timeout_s(found.get("timeout_ms")), _priority(found.get("priority")))


def _timeout_s(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value) / 1000
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise _invalid("timeout_ms", "a positive number of milliseconds", value)
    return seconds


def _priority(value: Any) -> Priority | None:
    if value is None or value in get_args(Priority):
        return value  # type: ignore[no-any-return]
    raise _invalid("priority", f"one of {', '.join(get_args(Priority))}", value)


def _invalid(name: str, wanted: str, value: Any) -> InvalidRequest:
    message = f"{name}: is {wanted}, not {str(value)[:32]!r}."
    return InvalidRequest(message, details=(Problem(name, "out_of_range", message),))


@dataclass(frozen=True)
class ModelLimits:
    """How the requests of one model are treated.

    Attributes:
        timeout_s: the longest that any may take.
        deadline_s: the model's own limit, or None.
        weight: how much sooner than others they are due: 2 halves the time they are given.
        most: requests under way at a time.
    """

    timeout_s: float = 30.0
    deadline_s: float | None = None
    weight: float = 1.0
    most: int = 256


class Admission:
    """The requests of one model that are under way. All methods belong to one event loop."""

    def __init__(
        self, limits: ModelLimits, *, full_batch_s: Callable[[], float], wait_s: Callable[[float], float]
    ) -> None:
        self._limits = limits
        self._full_batch_s = full_batch_s
        self._wait_s = wait_s
        self._mean, self._spread = 1.0, 0.25
        """How many times longer than was foreseen requests take, and by how much that differs from one to the next."""
        self.in_flight = 0
        self.abandoned = 0
        """Requests that nobody waits for any more, and whose step a thread has not ended yet."""

    def longest_s(self, options: RequestOptions) -> float:
        """How long a request may take, as its client, the model and the server will have it."""
        times = (options.timeout_s, self._limits.deadline_s, self._limits.timeout_s)
        return min(time for time in times if time is not None)

    def deadline(self, options: RequestOptions, came: float) -> Deadline:
        """When a request that came then (the loop's time) is due, and when it is too late.

        A longer time than the model's own makes nothing less urgent: who only guards against waiting for ever would
        come last.
        """
        longest = self.longest_s(options)
        usual = self._limits.deadline_s or max(_MIN_TARGET_SECONDS, DEFAULT_SLACK_FACTOR * self._full_batch_s())
        urgency = self._limits.weight * URGENCY[options.priority or "normal"]
        return Deadline(came + min(longest, usual) / urgency, came + longest)

    @contextmanager
    def permit(
        self, deadline: Deadline, own_s: float, least_s: float, *, is_representative: Callable[[], bool] = lambda: True
    ) -> Iterator[None]:
        """A place among the requests under way, taken before anything is done for one.

        `own_s` is what it will take by itself, `least_s` what it takes at best; `is_representative` says in the end if
        something follows for others from how long it took. Raises Overloaded and DeviceHung.
        """
        foreseen = self.check(deadline, own_s, least_s)
        loop = asyncio.get_running_loop()
        came = loop.time()
        self.in_flight += 1
        late = done = False
        try:
            yield
            done = True
        except (TooLate, DeadlineExceeded):
            late = True  # It was given up before, since it would not have been done by then.
            raise
        finally:
            self.in_flight -= 1
            now = loop.time()
            late = late or now >= deadline.until - _A_TICK_S
            # One that failed, or whose client went, tells nothing of how long they take; one that was late does: at
            # least as long as it had. Taken for just that, half of those that are let in would always be late.
            if is_representative() and (done or late):
                self._compare(foreseen, _IF_LATE * (deadline.until - came) if late else now - came)

    def check(self, deadline: Deadline, own_s: float, least_s: float) -> float:
        """The seconds until the answer, as they are foreseen; takes no place. Raises Overloaded and DeviceHung."""
        taken, wait = self.in_flight + self.abandoned, self._wait_s(deadline.due)
        _check_alive(wait)
        if taken >= self._limits.most:
            message = f"{taken} requests are under way, as many as are accepted; try again later."
            raise Overloaded(message, retry_after_s=max(1, math.ceil(self._wait_s(math.inf) * self._wrong)))
        if (
            not taken
        ):  # Nothing is under way from which could be learnt that it is faster again: this one is to find out.
            return self.check_time(deadline, 0.0, wait + own_s, 2 * (wait + least_s))
        return self.check_time(deadline, wait, own_s, least_s)

    def check_time(self, deadline: Deadline, wait: float, own_s: float, least_s: float) -> float:
        """The seconds until the answer of a request that waits so long for its turn. Raises Overloaded, DeviceHung."""
        _check_alive(wait)
        left = deadline.until - asyncio.get_running_loop().time()
        foreseen = wait + own_s
        needed = foreseen * self._wrong + ADMISSION_MARGIN * self._full_batch_s()
        # With nothing to wait for it is worth trying: what was measured lately may have been an exception.
        if needed > left if wait else least_s / 2 > left:
            if not wait:
                message = (
                    f"It takes about {own_s * 1000:.0f} ms by itself, and {max(0.0, left) * 1000:.0f} ms are left."
                )
                raise Overloaded(message, retry_after_s=1)
            message = (
                f"The answer would come after about {needed * 1000:.0f} ms, "
                f"and {max(0.0, left) * 1000:.0f} ms are left; try again later."
            )
            raise Overloaded(message, retry_after_s=max(1, math.ceil(needed - left)))
        return foreseen

    @property
    def _wrong(self) -> float:
        """What is foreseen is to be taken times this; as TCP judges when an answer is overdue (RFC 6298)."""
        return self._mean + 2 * self._spread

    def _compare(self, foreseen: float, took: float) -> None:
        if foreseen > _WORTH_COMPARING_S:
            off = min(max(took / foreseen, 1 / _MAX_CORRECTION), _MAX_CORRECTION) - self._mean
            self._mean += _SMOOTHING * off
            self._spread += 2 * _SMOOTHING * (abs(off) - self._spread)


def _check_alive(wait: float) -> None:
    if math.isinf(wait):
        raise DeviceHung("The device does not come back from a run; try again later.", retry_after_s=10)
