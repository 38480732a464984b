"""What the neighbours of bad requests notice of them: nothing, or one more batch. On a clock that does not wait."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import Deadline, Scheduler, TooLate
from tests.fake_device import (
    CORRUPT,
    FAILS,
    FITS_ALONE,
    FITS_QUITE_ALONE,
    NEVER_FITS,
    SLOW,
    FakeDevice,
    Model,
    Speed,
    right,
)
from tests.virtual_clock import run_virtually

Fate = Literal["other dtype", "too late", "gone while it waits", "gone while it runs"]
FATES: tuple[Fate, ...] = ("other dtype", "too late", "gone while it waits", "gone while it runs")


async def batch_ends(values: Sequence[float], concurrency: int, speed: Speed) -> list[tuple[float, object]]:
    """When requests are answered that come together, and how."""
    model = Model(FakeDevice(), Scheduler(concurrency), speed=speed, most=16)
    ends: dict[int, tuple[float, object]] = {}

    async def client(number: int) -> None:
        (result,) = await asyncio.gather(model.asked(values[number], due=0.0), return_exceptions=True)
        ends[number] = asyncio.get_running_loop().time(), result

    await asyncio.gather(*(client(number) for number in range(len(values))))
    assert model.batcher.depth == 0
    return [ends[number] for number in range(len(values))]


poisons_of_a_batch = [FAILS, FAILS, CORRUPT, NEVER_FITS, FITS_ALONE, FITS_QUITE_ALONE]
batches = st.lists(
    st.integers(1, 1000).map(float) | st.sampled_from(poisons_of_a_batch),
    min_size=2,
    max_size=16,
)


def good_ones_of(values: Sequence[float]) -> list[float]:
    return [value if value > 0 else 1.0 for value in values]


@settings(max_examples=200, deadline=None)
@given(batches, st.integers(1, 3))
def test_whatever_a_batch_has_in_it_its_good_members_wait_for_one_more_batch_at_most(
    values: list[float], concurrency: int
) -> None:
    """Where a batch takes as long as its samples one by one."""
    speed = Speed(0.0, 0.1)

    ends = run_virtually(batch_ends(values, concurrency, speed))
    clean = run_virtually(batch_ends(good_ones_of(values), concurrency, speed))

    for value, (end, result), (clean_end, _) in zip(values, ends, clean, strict=True):
        if value > 0:
            assert result == right(value)
            assert end - clean_end <= speed.seconds(len(values)) + 1e-9


@settings(max_examples=200, deadline=None)
@given(batches, st.integers(1, 3), st.floats(0.0, 5.0))
def test_where_batches_gain_much_good_members_wait_for_as_many_more_as_there_are_halvings(
    values: list[float], concurrency: int, fixed_s: float
) -> None:
    """The bound where one run costs much and a sample little: all the parts of all levels, one after the other.

    With one culprit that is two parts a level; with a culprit in each part it is all of them.
    """
    speed = Speed(fixed_s, 0.1)
    bound, size, parts = 0.0, len(values), 1
    while size > 1:
        size, parts = math.ceil(size / 2), 2 * parts
        bound += parts * speed.seconds(size)

    ends = run_virtually(batch_ends(values, concurrency, speed))
    clean = run_virtually(batch_ends(good_ones_of(values), concurrency, speed))

    for value, (end, result), (clean_end, _) in zip(values, ends, clean, strict=True):
        if value > 0:
            assert result == right(value)
            assert end - clean_end <= bound + 1e-9


SPEEDS = {"rows": Speed(0.002, 0.0005), "pictures": Speed(0.0, 0.02), "tiles": Speed(0.0, 0.2)}
MAX_BATCH = {"rows": 32, "pictures": 8, "tiles": 2}
OFTEN = {"rows": 8, "pictures": 4, "tiles": 1}
MAX_BATCH_SECONDS = SPEEDS["tiles"].seconds(MAX_BATCH["tiles"])


@dataclass(frozen=True)
class Request:
    """A request: when it comes, for what, and what is wrong with it."""

    came: float
    model: str
    value: float
    poison: float | Fate | None = None


def requests_of(
    seed: int, count: int, poisons: Sequence[float | Fate], *, load: float = 0.3, share: float = 0.1
) -> list[Request]:
    """Requests for three models, which arrive at random and keep both places of the device busy for `load` of it."""
    chance, came, requests = random.Random(seed), 0.0, []
    mean = sum(OFTEN[name] * SPEEDS[name].seconds(MAX_BATCH[name]) / MAX_BATCH[name] for name in OFTEN) / sum(
        OFTEN.values()
    )
    for number in range(1, count + 1):
        came += chance.expovariate(2 * load / mean)
        (model,) = chance.choices(list(OFTEN), list(OFTEN.values()))
        poison = chance.choice(poisons) if chance.random() < share else None
        requests.append(Request(came, model, float(number), poison))
    return requests


async def ask(model: Model, request: Request) -> object:
    now = asyncio.get_running_loop().time()
    full = model.speed.seconds(MAX_BATCH[request.model])
    due = now + max(0.05, 20 * full)
    if request.poison == "other dtype":
        ran = await model.batcher.submit({"x": np.full((1, 1), request.value, np.float32)}, Deadline(due))
        return ran.outputs["y"][:, 0].tolist()
    if request.poison == "too late":
        return await model.ask(request.value, due=due, until=now)
    value = request.poison if isinstance(request.poison, float) else request.value
    task = model.asked(value, due=due)
    if request.poison in ("gone while it waits", "gone while it runs"):
        await asyncio.sleep(0 if request.poison == "gone while it waits" else full / 4)
        task.cancel()
    return await task


async def play(requests: Sequence[Request]) -> list[tuple[float, object]]:
    """When each is answered, and how."""
    device, scheduler, loop = FakeDevice(), Scheduler(2), asyncio.get_running_loop()
    models = {name: Model(device, scheduler, name, speed=SPEEDS[name], most=MAX_BATCH[name]) for name in SPEEDS}
    ends: dict[float, tuple[float, object]] = {}

    async def client(request: Request) -> None:
        (result,) = await asyncio.gather(
            asyncio.create_task(ask(models[request.model], request)), return_exceptions=True
        )
        ends[request.value] = loop.time(), result

    clients = []
    for request in requests:
        await asyncio.sleep(request.came - loop.time())
        clients.append(asyncio.create_task(client(request)))
    await asyncio.gather(*clients)
    await asyncio.sleep(10)  # What runs for somebody who has gone ends, too.
    assert all(model.batcher.depth == 0 for model in models.values())
    assert not device.running
    return [ends[request.value] for request in requests]


def extra_waits_of(requests: Sequence[Request]) -> list[float]:
    """By how much longer each good request waits than if all the bad ones were good; its answer is the same."""
    ends = run_virtually(play(requests))
    clean = run_virtually(play([replace(request, poison=None) for request in requests]))
    extra = []
    for request, (end, result), (clean_end, clean_result) in zip(requests, ends, clean, strict=True):
        if request.poison is None:
            assert result == clean_result == right(request.value)
            extra.append(end - clean_end)
        elif request.poison == "too late":
            assert isinstance(result, TooLate)
        elif request.poison in ("gone while it waits", "gone while it runs"):
            assert isinstance(result, asyncio.CancelledError | list)
        elif request.poison in (FAILS, NEVER_FITS):
            assert isinstance(result, RuntimeError)
    return extra


def test_of_10_000_mixed_requests_with_1000_poisonous_no_neighbour_fails_or_waits_for_more_than_one_batch() -> None:
    """In the currency of the device: one batch of the model whose batches are the longest, 0.4 s; at a load of 50 %.

    At 70 % the culprits of several batches meet: 3 in a thousand then wait for up to 1.7 batches.
    """
    extra = extra_waits_of(requests_of(7, 10_000, [FAILS, FAILS, CORRUPT, *FATES], load=0.5))

    assert max(extra) <= MAX_BATCH_SECONDS


def test_with_memory_that_is_short_and_slow_samples_no_neighbour_waits_for_more_than_two_batches() -> None:
    """A slow sample is one more batch for its own, and one that runs quite alone has the whole device stand still.

    So one in a hundred may meet two of them at a time: each costs one batch.
    """
    poisons = [FAILS, CORRUPT, NEVER_FITS, FITS_ALONE, FITS_QUITE_ALONE, SLOW, *FATES]

    extra = extra_waits_of(requests_of(1, 10_000, poisons))

    assert max(extra) <= 2 * MAX_BATCH_SECONDS
    assert sum(wait > MAX_BATCH_SECONDS for wait in extra) <= 0.01 * len(extra)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.2, 0.8, 3.0]))
def test_however_many_are_poisonous_and_however_many_come_the_others_get_their_own_answers(
    seed: int, count: int, share: float, load: float
) -> None:
    poisons = [FAILS, CORRUPT, NEVER_FITS, FITS_ALONE, FITS_QUITE_ALONE, SLOW, *FATES]

    requests = requests_of(seed, count, poisons, load=load, share=share)

    assert len(extra_waits_of(requests)) == sum(request.poison is None for request in requests)
