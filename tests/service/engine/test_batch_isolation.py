"""What a bad request costs the other requests in its batch: nothing, or one more batch; on the virtual clock."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import Deadline, MissedDeadline, Scheduler
from tests.fake_device import (
    CORRUPT,
    FAILS,
    FITS_EXCLUSIVELY,
    FITS_UNBATCHED,
    NEVER_FITS,
    SLOW,
    FakeDevice,
    FakeModel,
    Speed,
    end_of,
    expected,
)
from tests.virtual_clock import now, run_virtually

ClientFault = Literal["other dtype", "too late", "disconnects while waiting", "disconnects while running"]
CLIENT_FAULTS: tuple[ClientFault, ...] = (
    "other dtype",
    "too late",
    "disconnects while waiting",
    "disconnects while running",
)


async def ends_of_batch(values: Sequence[float], concurrency: int, speed: Speed) -> list[tuple[float, object]]:
    """Send requests that arrive together; return when each ended, and its outcome."""
    model = FakeModel(FakeDevice(), Scheduler(concurrency), speed=speed, max_size=16)
    ends = await asyncio.gather(*(end_of(model.start_predict(value, target=0.0)) for value in values))
    assert model.batcher.depth == 0
    return ends


batches = st.lists(
    st.integers(1, 1000).map(float)
    | st.sampled_from([FAILS, FAILS, CORRUPT, NEVER_FITS, FITS_UNBATCHED, FITS_EXCLUSIVELY]),
    min_size=2,
    max_size=16,
)


def without_poison(values: Sequence[float]) -> list[float]:
    return [value if value > 0 else 1.0 for value in values]


@settings(max_examples=200, deadline=None)
@given(batches, st.integers(1, 3))
def test_good_requests_wait_one_more_batch_at_most_where_batches_gain_nothing(
    values: list[float], concurrency: int
) -> None:
    """A batch takes as long as its samples one by one."""
    speed = Speed(0.0, 0.1)

    ends = run_virtually(ends_of_batch(values, concurrency, speed))
    clean_ends = run_virtually(ends_of_batch(without_poison(values), concurrency, speed))

    for value, (ended_at, outcome), (clean_ended_at, _) in zip(values, ends, clean_ends, strict=True):
        if value > 0:
            assert outcome == expected(value)
            assert ended_at - clean_ended_at <= speed.seconds(len(values)) + 1e-9


@settings(max_examples=200, deadline=None)
@given(batches, st.integers(1, 3), st.floats(0.0, 5.0))
def test_good_requests_wait_for_all_bisections_at_most_where_batches_gain_much(
    values: list[float], concurrency: int, fixed_s: float
) -> None:
    """The bound is the sum of all parts of all levels, one after the other; a run costs much and a sample little.

    One culprit causes two parts per level; a culprit in each part causes all of them.
    """
    speed = Speed(fixed_s, 0.1)
    bound_s, size, parts = 0.0, len(values), 1
    while size > 1:
        size, parts = math.ceil(size / 2), 2 * parts
        bound_s += parts * speed.seconds(size)

    ends = run_virtually(ends_of_batch(values, concurrency, speed))
    clean_ends = run_virtually(ends_of_batch(without_poison(values), concurrency, speed))

    for value, (ended_at, outcome), (clean_ended_at, _) in zip(values, ends, clean_ends, strict=True):
        if value > 0:
            assert outcome == expected(value)
            assert ended_at - clean_ended_at <= bound_s + 1e-9


SPEEDS = {"rows": Speed(0.002, 0.0005), "images": Speed(0.0, 0.02), "tiles": Speed(0.0, 0.2)}
MAX_SIZES = {"rows": 32, "images": 8, "tiles": 2}
FREQUENCIES = {"rows": 8, "images": 4, "tiles": 1}
LONGEST_BATCH_S = SPEEDS["tiles"].seconds(MAX_SIZES["tiles"])


@dataclass(frozen=True)
class Request:
    """A request for one model; `poison` says what is wrong with it."""

    arrived_at: float
    model: str
    value: float
    poison: float | ClientFault | None = None


def random_requests(
    seed: int,
    count: int,
    poisons: Sequence[float | ClientFault],
    *,
    load: float = 0.3,
    poisoned_fraction: float = 0.1,
) -> list[Request]:
    """Return requests for three models that arrive at random and keep both slots of the device busy for `load`."""
    rng, arrived_at, requests = random.Random(seed), 0.0, []
    mean_s = sum(
        FREQUENCIES[name] * SPEEDS[name].seconds(MAX_SIZES[name]) / MAX_SIZES[name] for name in FREQUENCIES
    ) / sum(FREQUENCIES.values())
    for number in range(1, count + 1):
        arrived_at += rng.expovariate(2 * load / mean_s)
        (model,) = rng.choices(list(FREQUENCIES), list(FREQUENCIES.values()))
        poison = rng.choice(poisons) if rng.random() < poisoned_fraction else None
        requests.append(Request(arrived_at, model, float(number), poison))
    return requests


async def send(model: FakeModel, request: Request) -> object:
    full_batch_s = model.speed.seconds(MAX_SIZES[request.model])
    target = now() + max(0.05, 20 * full_batch_s)
    if request.poison == "other dtype":
        result = await model.batcher.submit({"x": np.full((1, 1), request.value, np.float32)}, Deadline(target))
        return result.outputs["y"][:, 0].tolist()
    if request.poison == "too late":
        return await model.predict(request.value, target=target, limit=now())
    value = request.poison if isinstance(request.poison, float) else request.value
    task = model.start_predict(value, target=target)
    if request.poison in ("disconnects while waiting", "disconnects while running"):
        await asyncio.sleep(0 if request.poison == "disconnects while waiting" else full_batch_s / 4)
        task.cancel()
    return await task


async def replay(requests: Sequence[Request]) -> list[tuple[float, object]]:
    """Send all requests at their times; return when each ended, and its outcome."""
    device, scheduler = FakeDevice(), Scheduler(2)
    models = {name: FakeModel(device, scheduler, name, speed=SPEEDS[name], max_size=MAX_SIZES[name]) for name in SPEEDS}
    ends: dict[float, tuple[float, object]] = {}

    async def client(request: Request) -> None:
        (outcome,) = await asyncio.gather(
            asyncio.create_task(send(models[request.model], request)), return_exceptions=True
        )
        ends[request.value] = now(), outcome

    clients = []
    for request in requests:
        await asyncio.sleep(request.arrived_at - now())
        clients.append(asyncio.create_task(client(request)))
    await asyncio.gather(*clients)
    await asyncio.sleep(10)  # Lets runs end whose client has disconnected.
    assert all(model.batcher.depth == 0 for model in models.values())
    assert not device.running
    return [ends[request.value] for request in requests]


def extra_waits(requests: Sequence[Request]) -> list[float]:
    """Return by how much longer each good request waits than if no request were poisoned; its answer is the same."""
    ends = run_virtually(replay(requests))
    clean_ends = run_virtually(replay([replace(request, poison=None) for request in requests]))
    waits = []
    for request, (ended_at, outcome), (clean_ended_at, clean_outcome) in zip(requests, ends, clean_ends, strict=True):
        if request.poison is None:
            assert outcome == clean_outcome == expected(request.value)
            waits.append(ended_at - clean_ended_at)
        elif request.poison == "too late":
            assert isinstance(outcome, MissedDeadline)
        elif request.poison in ("disconnects while waiting", "disconnects while running"):
            assert isinstance(outcome, asyncio.CancelledError | list)
        elif request.poison in (FAILS, NEVER_FITS):
            assert isinstance(outcome, RuntimeError)
    return waits


def test_among_10_000_requests_with_1000_poisoned_no_good_one_fails_or_waits_longer_than_one_batch() -> None:
    """One batch of the model with the longest batches takes 0.4 s; the load is 50 %.

    At 70 % the culprits of several batches meet: 3 in a thousand then wait for up to 1.7 batches.
    """
    waits = extra_waits(random_requests(7, 10_000, [FAILS, FAILS, CORRUPT, *CLIENT_FAULTS], load=0.5))

    assert max(waits) <= LONGEST_BATCH_S


def test_with_short_memory_and_slow_samples_no_good_request_waits_longer_than_two_batches() -> None:
    """A slow sample delays its own batch by one; a sample that needs the whole device stops all others for one.

    One request in a hundred may meet two of them, each of which costs one batch.
    """
    poisons = [FAILS, CORRUPT, NEVER_FITS, FITS_UNBATCHED, FITS_EXCLUSIVELY, SLOW, *CLIENT_FAULTS]

    waits = extra_waits(random_requests(1, 10_000, poisons))

    assert max(waits) <= 2 * LONGEST_BATCH_S
    assert sum(wait > LONGEST_BATCH_S for wait in waits) <= 0.01 * len(waits)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.2, 0.8, 3.0]))
def test_good_requests_get_their_own_answers_at_any_load_and_fraction_of_poisoned_ones(
    seed: int, count: int, poisoned_fraction: float, load: float
) -> None:
    poisons = [FAILS, CORRUPT, NEVER_FITS, FITS_UNBATCHED, FITS_EXCLUSIVELY, SLOW, *CLIENT_FAULTS]

    requests = random_requests(seed, count, poisons, load=load, poisoned_fraction=poisoned_fraction)

    assert len(extra_waits(requests)) == sum(request.poison is None for request in requests)
