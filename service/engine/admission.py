"""Admission control: accept a request with a deadline, or reject it with Retry-After.

A request that cannot be answered before its deadline is rejected before any work is done for it. The decision compares
the time that is left with a prediction: the wait for workers and device, plus the request's own service time, corrected
by how far earlier predictions were off.

`parse_options` reads the options with which a client influences its deadline. This module knows nothing about the
pipeline or the batcher; it is given functions that predict.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

from service.engine.error_mapping import device_hung
from service.engine.scheduler import URGENCY, Deadline, MissedDeadline, Priority
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from tasks.contract import Problem

OPTION_FIELDS = ("timeout_ms", "priority")
"""Fields of any request that set its options and are not part of the input."""
DEFAULT_SLACK_FACTOR = 20
"""A request without a timeout is due after this many times the duration of a full batch of its model."""
_MIN_SLACK_S = 0.05
ADMISSION_MARGIN = 0.5
"""Safety margin of the prediction, as a fraction of a full batch's duration. Waits are not known more exactly. A
request admitted at the last moment also forces small batches, because it must not be late, and delays all others."""
_SMOOTHING = 0.05
_CLOCK_RESOLUTION_S = 0.002
"""Resolution of the event loop's clock: its time may lag behind by this much."""
_MIN_COMPARED_S = 0.005
"""Shorter predictions are not compared with what a request really took."""
_MAX_CORRECTION = 8.0
_LATE_FACTOR = 2.0


@dataclass(frozen=True)
class RequestOptions:
    """What a client asks for: seconds until the answer, and a priority."""

    timeout_s: float | None = None
    priority: Priority | None = None

    def merge(self, other: "RequestOptions") -> "RequestOptions":
        """Combine two sets of options: the shorter timeout, and the priority of `other` if it has one."""
        timeouts = [timeout_s for timeout_s in (self.timeout_s, other.timeout_s) if timeout_s is not None]
        return RequestOptions(min(timeouts, default=None), other.priority or self.priority)

    def __bool__(self) -> bool:
        return self.timeout_s is not None or self.priority is not None


NO_OPTIONS = RequestOptions()


def parse_options(
    fields: Mapping[str, Any], *, names: tuple[str, ...] = OPTION_FIELDS
) -> tuple[Mapping[str, Any], RequestOptions]:
    """Split a request's fields into the input and the options called `names`. Raises InvalidRequest."""
    values = {name: fields[name] for name in names if name in fields}
    if not values:
        return fields, NO_OPTIONS
    rest = {name: value for name, value in fields.items() if name not in values}
    return rest, RequestOptions(_parse_timeout_s(values.get("timeout_ms")), _parse_priority(values.get("priority")))


def _parse_timeout_s(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value) / 1000
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise _invalid_option("timeout_ms", "a positive number of milliseconds", value)
    return seconds


def _parse_priority(value: Any) -> Priority | None:
    if value is None or value in get_args(Priority):
        return value  # type: ignore[no-any-return]
    raise _invalid_option("priority", f"one of {', '.join(get_args(Priority))}", value)


def _invalid_option(name: str, expected: str, value: Any) -> InvalidRequest:
    message = f"{name}: must be {expected}, not {str(value)[:32]!r}."
    return InvalidRequest(message, details=(Problem(name, "out_of_range", message),))


@dataclass(frozen=True)
class ModelLimits:
    """Limits on the requests of one model.

    Attributes:
        timeout_s: the server's limit on the duration of any request.
        deadline_s: the model's own, shorter limit; None for none.
        weight: divides the time until a request's target: with 2 the model's requests are due in half the time.
        max_in_flight: concurrent requests.
    """

    timeout_s: float = 30.0
    deadline_s: float | None = None
    weight: float = 1.0
    max_in_flight: int = 256


class Admission:
    """Decides which requests of one model are accepted. All methods belong to one event loop.

    `full_batch_s` returns the duration of a full batch, `predict_wait_s` the wait of a request with the given target.
    """

    def __init__(
        self, limits: ModelLimits, *, full_batch_s: Callable[[], float], predict_wait_s: Callable[[float], float]
    ) -> None:
        self.limits = limits
        self._full_batch_s = full_batch_s
        self._predict_wait_s = predict_wait_s
        self._mean_ratio, self._ratio_deviation = 1.0, 0.25
        """Actual ÷ predicted duration of recent requests: mean, and mean absolute deviation from it."""
        self.in_flight = 0
        self.quick = 0
        """Requests that wait for their turn on the event loop, which their deadlines limit and no number."""
        self.abandoned = 0
        """Requests whose client has gone but whose current step still occupies a thread."""

    def timeout_s(self, options: RequestOptions) -> float:
        """Return the seconds that a request may take: the shortest limit of its client, the model and the server."""
        limits = (options.timeout_s, self.limits.deadline_s, self.limits.timeout_s)
        return min(limit for limit in limits if limit is not None)

    def make_deadline(self, options: RequestOptions, arrived_at: float) -> Deadline:
        """Return the deadline of a request that arrived at this time of the event loop.

        A timeout longer than the model's usual time does not make the target later: a client that only guards against
        waiting forever would be served last.
        """
        timeout_s = self.timeout_s(options)
        usual_s = self.limits.deadline_s or max(_MIN_SLACK_S, DEFAULT_SLACK_FACTOR * self._full_batch_s())
        urgency = self.limits.weight * URGENCY[options.priority or "normal"]
        return Deadline(arrived_at + min(timeout_s, usual_s) / urgency, arrived_at + timeout_s)

    @contextmanager
    def permit(
        self,
        deadline: Deadline,
        service_s: float,
        min_service_s: float,
        *,
        prepare_wait_s: float = 0.0,
        is_representative: Callable[[], bool] = lambda: True,
    ) -> Iterator[None]:
        """Admit a request for the duration of the `with` block, before any work is done for it.

        Args:
            deadline: of the request.
            service_s: predicted seconds that the request takes without waiting.
            min_service_s: the same at best.
            prepare_wait_s: predicted wait before the request is prepared, in addition to what `predict_wait_s` returns.
            is_representative: called at the end; returns whether the request's duration helps to predict others.

        Raises:
            Overloaded: The request cannot be answered in time, or too many are in flight.
            DeviceHung: The device does not respond.
        """
        predicted_s = self.check(deadline, service_s, min_service_s, prepare_wait_s=prepare_wait_s)
        loop = asyncio.get_running_loop()
        admitted_at = loop.time()
        self.in_flight += 1
        is_late = is_done = False
        try:
            yield
            is_done = True
        except (MissedDeadline, DeadlineExceeded):
            is_late = True  # It was given up before its deadline, which it would have missed.
            raise
        finally:
            self.in_flight -= 1
            now = loop.time()
            is_late = is_late or now >= deadline.limit - _CLOCK_RESOLUTION_S
            # The duration of a failed or cancelled request says nothing about others. A late request would have taken
            # at least the time it had. Counting just that would leave half of the admitted requests late.
            if is_representative() and (is_done or is_late):
                elapsed_s = _LATE_FACTOR * (deadline.limit - admitted_at) if is_late else now - admitted_at
                self._update_correction(predicted_s, elapsed_s)

    def check_quick(self, deadline: Deadline, predicted_s: float) -> None:
        """Check that a request could be admitted now that waits for nothing but its turn on the event loop.

        Its wait is short and well known, so that deciding costs less than answering. With nobody before it, it is worth
        trying whatever was measured. The caller counts it in `quick`. Raises Overloaded.
        """
        self._check_in_flight(0.0)
        left_s = deadline.limit - asyncio.get_running_loop().time()
        if predicted_s > left_s:
            message = f"The request would take about {predicted_s * 1000:.0f} ms, {_but_remaining(left_s)} Retry later."
            raise Overloaded(message, retry_after_s=1)

    def _check_in_flight(self, prepare_wait_s: float) -> None:
        """Raise Overloaded if the model has as many requests as it may have."""
        if self.in_flight + self.abandoned >= self.limits.max_in_flight:
            message = f"Too many concurrent requests for this model (limit {self.limits.max_in_flight}). Retry later."
            drained_s = (self._predict_wait_s(math.inf) + prepare_wait_s) * self._correction
            raise Overloaded(message, retry_after_s=max(1, math.ceil(drained_s)))

    @contextmanager
    def count_more(self, inputs: int) -> Iterator[None]:
        """Count further inputs of a request as requests in flight, for the duration of the `with` block."""
        self.in_flight += inputs
        try:
            yield
        finally:
            self.in_flight -= inputs

    def check(
        self, deadline: Deadline, service_s: float, min_service_s: float, *, prepare_wait_s: float = 0.0
    ) -> float:
        """Check that a request could be admitted now; return the predicted seconds until its answer.

        Arguments and errors are those of `permit`.
        """
        in_flight, wait_s = self.in_flight + self.abandoned, self._predict_wait_s(deadline.target)
        _check_device(wait_s)
        wait_s += prepare_wait_s
        self._check_in_flight(prepare_wait_s)
        if not in_flight:
            # No running request could reveal that the device is fast again, so admit this one to find out.
            return self.check_deadline(deadline, 0.0, wait_s + service_s, 2 * (wait_s + min_service_s))
        return self.check_deadline(deadline, wait_s, service_s, min_service_s)

    def check_deadline(self, deadline: Deadline, wait_s: float, service_s: float, min_service_s: float) -> float:
        """Check that a request with this predicted wait meets its deadline; return the seconds until its answer.

        Arguments and errors are those of `permit`.
        """
        _check_device(wait_s)
        left_s = deadline.limit - asyncio.get_running_loop().time()
        predicted_s = wait_s + service_s
        needed_s = predicted_s * self._correction + ADMISSION_MARGIN * self._full_batch_s()
        if wait_s and needed_s > left_s:
            message = f"The request would take about {needed_s * 1000:.0f} ms, {_but_remaining(left_s)} Retry later."
            raise Overloaded(message, retry_after_s=max(1, math.ceil(needed_s - left_s)))
        # Without a wait the request is worth trying: the last measurements may have been exceptions.
        if not wait_s and min_service_s / 2 > left_s:
            message = f"The request takes about {service_s * 1000:.0f} ms without any wait, {_but_remaining(left_s)}"
            raise Overloaded(message, retry_after_s=1)
        return predicted_s

    @property
    def _correction(self) -> float:
        """The factor for predictions: mean plus deviations, as TCP computes its retransmission timeout (RFC 6298)."""
        return self._mean_ratio + 2 * self._ratio_deviation

    def _update_correction(self, predicted_s: float, elapsed_s: float) -> None:
        if predicted_s > _MIN_COMPARED_S:
            ratio = min(max(elapsed_s / predicted_s, 1 / _MAX_CORRECTION), _MAX_CORRECTION)
            deviation = ratio - self._mean_ratio
            self._mean_ratio += _SMOOTHING * deviation
            self._ratio_deviation += 2 * _SMOOTHING * (abs(deviation) - self._ratio_deviation)


def _check_device(wait_s: float) -> None:
    if math.isinf(wait_s):
        raise device_hung()


def _but_remaining(left_s: float) -> str:
    return f"but only {max(0.0, left_s) * 1000:.0f} ms remain before its deadline."
