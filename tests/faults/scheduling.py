"""Whether who is quick stays quick: beside a burst of slow batches, after the start, and while others are decoded."""

from collections.abc import Mapping

from loadtests.clients import Apart, Reply, closed_loop, one_by_one, open_loop, steady
from tests.faults.report import Row, median, percentile
from tests.faults.sample_requests import Known, Sent
from tests.faults.scenario import Run, batch_seconds, first_of, ms
from tests.faults.server_process import Host, started

_TIMES = 1.5
_RESOLUTION_S = 0.002
"""What the machine itself makes a request of a millisecond longer by, now and then."""
_MIN_BUSY_FRACTION = 0.9


def measure_burst(run: Run) -> list[Row]:
    """p99 of quick requests alone and under a burst of large pictures to be restored, in turns."""
    quick = {
        "adult, one row": [run.known["adult"].good(seed) for seed in range(20)],
        "imdb, 100 words": [run.known["imdb"].good(seed, size=100) for seed in range(20)],
    }
    burst = [run.known["restore"].good(seed, size=300).request for seed in range(4)]
    with run.some("adult", "imdb", "restore") as models, started(models) as host, Apart() as apart:
        one_by_one(host.port, [sent.request for all_sent in quick.values() for sent in all_sent])
        return [_beside(run, host, apart, what, sent, burst) for what, sent in quick.items()]


def _beside(run: Run, host: Host, apart: Apart, what: str, sent: list[Sent], burst: list[bytes]) -> Row:
    seconds = run.pick(4.0, 1.0)
    calls = steady([one.request for one in sent], per_second=run.pick(50, 25), seconds=seconds)
    alone, beside, wrong = list[float](), list[float](), list[str]()
    for _ in range(run.pick(3, 1)):
        alone.append(_p99(open_loop(host.port, calls), wrong))
        loading = apart.closed_loop(host.port, burst, 4, seconds)
        beside.append(_p99(open_loop(host.port, calls), wrong))
        wrong += [f"restore: {reply.status}" for reply in loading.result() if reply.status != 200]
    batch_s = batch_seconds(host, "restore")
    allowed = 3 * median(alone) + batch_s
    return Row(
        "burst",
        f"A burst of pictures to restore does not starve others: {what}",
        f"p99 ≤ 3 × alone + one batch of restore ({ms(batch_s)}) = {ms(allowed)}",
        f"{ms(median(beside))}; alone {ms(median(alone))}{first_of(wrong)}",
        median(beside) <= allowed and not wrong,
        timed=True,
        figures={"alone_s": alone, "beside_s": beside, "batch_s": batch_s, "wrong": wrong[:10]},
    )


def _p99(replies: list[Reply], wrong: list[str]) -> float:
    wrong += [f"{reply.status}: {reply.body[:100]!r}" for reply in replies if reply.status != 200]
    return percentile([reply.seconds for reply in replies], 0.99)


def measure_first(run: Run) -> list[Row]:
    """The first request of each model and bucket after a start, against the median of those after it."""
    sent = dict(_buckets(run.known))
    first: dict[str, list[float]] = {what: [] for what in sent}
    then: dict[str, list[float]] = {what: [] for what in sent}
    for _ in range(run.pick(5, 1)):
        with started(run.models) as host:
            for what, reply in zip(sent, one_by_one(host.port, [one.request for one in sent.values()]), strict=True):
                first[what].append(reply.seconds)
            for what, one in sent.items():
                replies = one_by_one(host.port, [one.request] * run.pick(11, 3))
                then[what].append(median([reply.seconds for reply in replies]))
    firsts, steadies = ({what: median(taken) for what, taken in each.items()} for each in (first, then))
    over = {what: firsts[what] - _TIMES * steadies[what] for what in sent}
    worst = max(over, key=lambda what: over[what])
    ratio = median([firsts[what] / steadies[what] for what in sent])
    return [
        Row(
            "first",
            f"No first request is slower than later ones: {len(sent)} models and shapes, medians of "
            f"{len(first[worst])} starts",
            f"≤ {_TIMES} × later + {ms(_RESOLUTION_S)}, the resolution of the machine",
            f"median {ratio:.2f} ×; worst {worst}: {ms(firsts[worst])}, later {ms(steadies[worst])}; "
            f"{sum(value > _RESOLUTION_S for value in over.values())} of {len(sent)} over",
            over[worst] <= _RESOLUTION_S,
            timed=True,
            figures={"first_s": firsts, "later_s": steadies},
        )
    ]


def _buckets(known: Mapping[str, Known]) -> list[tuple[str, Sent]]:
    found = []
    for name, model in known.items():
        buckets = model.manifest.parameters.get("buckets")
        if buckets:
            found += [(f"{name}, {bucket} tokens", _of_length(model, bucket)) for bucket in buckets]
        else:
            found.append((name, model.good(1)))
    return [*found, ("adult, 32 rows", known["adult"].good(1, size=32))]


def _of_length(model: Known, bucket: int) -> Sent:
    """A text that is padded to this many tokens."""
    for words in range(bucket * 9 // 10, 0, -max(1, bucket // 16)):
        sent = model.good(bucket, size=words)
        arrays = model.task.preprocess(sent.fields["text"]).arrays
        if next(iter(arrays.values())).shape == (1, bucket):
            return sent
    raise ValueError(f"No text of {model.name} has {bucket} tokens.")


def measure_overlap(run: Run) -> list[Row]:
    """How much of the time a batch runs while eight clients ask: what is left, the device waits for the next."""
    requests = [run.known["clothing"].good(seed).request for seed in range(32)]
    seconds = run.pick(4.0, 1.0)
    with run.some("clothing") as models, started(models, faulty=True) as host:
        closed_loop(host.port, requests, 8, 0.5)
        serial = len(closed_loop(host.port, requests, 1, seconds)) / seconds
        host.fault(forget=True)
        replies = closed_loop(host.port, requests, 8, seconds)
        busy = _busy_share(host.seen()["runs"], replies[0].sent, replies[-1].ended - 0.1)
    outside = median([_outside(reply) for reply in replies])
    return [
        Row(
            "overlap",
            "While a batch runs, the next is decoded and the last is finished: clothing, 8 clients",
            f"a batch runs ≥ {_MIN_BUSY_FRACTION:.0%} of the time",
            f"{busy:.1%}, though {outside:.0%} of a request's work is outside the graph; "
            f"{len(replies) / seconds:.0f} requests a second, one after the other {serial:.0f}",
            busy >= _MIN_BUSY_FRACTION,
            timed=True,
            figures={"busy": busy, "per_second": len(replies) / seconds, "serial_per_second": serial},
        )
    ]


def _busy_share(runs: list[tuple[float, float, int]], began: float, ended: float) -> float:
    """The part of the time in which at least one of the runs was under way."""
    busy, until = 0.0, began
    for start, end, _ in sorted(runs):
        start, end = max(start, until), min(end, ended)
        busy += max(0.0, end - start)
        until = max(until, end)
    return busy / (ended - began)


def _outside(reply: Reply) -> float:
    """Of a request's work, the part that is not the graph's: decoding, and making the answer."""
    timing = dict(part.strip().split(";dur=") for part in reply.header("server-timing").split(",") if ";dur=" in part)
    graph, rest = float(timing["infer"]), float(timing["decode"]) + float(timing["postprocess"])
    return rest / (graph + rest)
