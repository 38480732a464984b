"""Fast requests stay fast: during a burst of slow batches, after startup, and while other requests are decoded."""

from collections.abc import Mapping

from loadtests.clients import LoadProcess, Reply, at_constant_rate, closed_loop, open_loop, send_sequentially
from tests.faults.report import Row, first_of, median, ms, percentile
from tests.faults.sample_requests import KnownModel, ValidRequest
from tests.faults.scenario import ScenarioContext, max_batch_seconds
from tests.faults.server_process import ServerProcess

_MAX_SLOWDOWN = 1.5
_TIMING_NOISE_S = 0.002
"""What the machine itself sometimes adds to a request of a millisecond."""
_MIN_BUSY_FRACTION = 0.9


def measure_burst(context: ScenarioContext) -> list[Row]:
    """p99 of fast requests on an idle server and during a burst of super-resolution requests."""
    known = context.known
    fast = {
        "adult, one row": [known["adult"].valid_request(seed) for seed in range(20)],
        "imdb, 100 words": [known["imdb"].valid_request(seed, size=100) for seed in range(20)],
    }
    burst = [known["restore"].valid_request(seed, size=context.pick(300, 150)).request for seed in range(4)]
    with context.server("adult", "imdb", "restore") as server, LoadProcess() as load_process:
        send_sequentially(server.port, [request.request for requests in fast.values() for request in requests])
        return [_burst_row(context, server, load_process, label, requests, burst) for label, requests in fast.items()]


def _burst_row(
    context: ScenarioContext,
    server: ServerProcess,
    load_process: LoadProcess,
    label: str,
    requests: list[ValidRequest],
    burst: list[bytes],
) -> Row:
    seconds = context.pick(4.0, 0.4)
    scheduled = at_constant_rate([r.request for r in requests], per_second=context.pick(50, 25), seconds=seconds)
    idle, loaded, problems = list[float](), list[float](), list[str]()
    for _ in range(context.pick(3, 1)):
        idle.append(_p99(open_loop(server.port, scheduled), problems))
        load = load_process.closed_loop(server.port, burst, 4, seconds)
        loaded.append(_p99(open_loop(server.port, scheduled), problems))
        problems += [f"restore: {reply.status}" for reply in load.result() if reply.status != 200]
    batch_s = max_batch_seconds(server, "restore")
    limit = 3 * median(idle) + batch_s
    return Row(
        "burst",
        f"A burst of super-resolution requests does not starve other models: {label}",
        f"p99 ≤ 3 × idle server + one batch of restore ({ms(batch_s)}) = {ms(limit)}",
        f"{ms(median(loaded))}; idle server {ms(median(idle))}{first_of(problems)}",
        median(loaded) <= limit and not problems,
        timed=True,
        figures={"idle_s": idle, "loaded_s": loaded, "batch_s": batch_s, "problems": problems[:10]},
    )


def _p99(replies: list[Reply], problems: list[str]) -> float:
    problems += [f"{reply.status}: {reply.body[:100]!r}" for reply in replies if reply.status != 200]
    return percentile([reply.seconds for reply in replies], 0.99)


def measure_first_request(context: ScenarioContext) -> list[Row]:
    """The first request to each model and input shape after startup, compared with the median of later ones."""
    requests = dict(_requests_by_shape(context.known))
    first: dict[str, list[float]] = {label: [] for label in requests}
    later: dict[str, list[float]] = {label: [] for label in requests}
    for _ in range(context.pick(5, 1)):
        with context.server() as server:
            replies = send_sequentially(server.port, [request.request for request in requests.values()])
            for label, reply in zip(requests, replies, strict=True):
                first[label].append(reply.seconds)
            for label, request in requests.items():
                replies = send_sequentially(server.port, [request.request] * context.pick(11, 1))
                later[label].append(median([reply.seconds for reply in replies]))
    first_s, later_s = ({label: median(times) for label, times in side.items()} for side in (first, later))
    excess = {label: first_s[label] - _MAX_SLOWDOWN * later_s[label] for label in requests}
    worst = max(excess, key=lambda label: excess[label])
    ratio = median([first_s[label] / later_s[label] for label in requests])
    return [
        Row(
            "first_request",
            f"The first requests after startup are as fast as later ones: {len(requests)} models and input shapes, "
            f"medians of {len(first[worst])} starts",
            f"≤ {_MAX_SLOWDOWN} × later + {ms(_TIMING_NOISE_S)} of timing noise",
            f"median {ratio:.2f} ×; worst {worst}: {ms(first_s[worst])}, later {ms(later_s[worst])}; "
            f"{sum(value > _TIMING_NOISE_S for value in excess.values())} of {len(requests)} over the limit",
            excess[worst] <= _TIMING_NOISE_S,
            timed=True,
            figures={"first_s": first_s, "later_s": later_s},
        )
    ]


def _requests_by_shape(known: Mapping[str, KnownModel]) -> list[tuple[str, ValidRequest]]:
    requests = []
    for name, model in known.items():
        buckets = model.manifest.parameters.get("buckets")
        if buckets:
            requests += [(f"{name}, {length} tokens", _text_of_length(model, length)) for length in buckets]
        else:
            requests.append((name, model.valid_request(1)))
    return [*requests, ("adult, 32 rows", known["adult"].valid_request(1, size=32))]


def _text_of_length(model: KnownModel, length: int) -> ValidRequest:
    """Make a text that is padded to this many tokens."""
    for words in range(length * 9 // 10, 0, -max(1, length // 16)):
        request = model.valid_request(length, size=words)
        arrays = model.task.preprocess(request.fields["text"]).arrays
        if next(iter(arrays.values())).shape == (1, length):
            return request
    raise ValueError(f"No text for {model.name} has {length} tokens.")


def measure_overlap(context: ScenarioContext) -> list[Row]:
    """The fraction of time in which the device is busy while eight clients send requests."""
    requests = [context.known["clothing"].valid_request(seed).request for seed in range(32)]
    seconds = context.pick(4.0, 0.3)
    with context.server("clothing", faulty=True) as server:
        closed_loop(server.port, requests, 8, context.pick(0.5, 0.1))
        sequential = len(closed_loop(server.port, requests, 1, seconds)) / seconds
        server.fault(forget=True)
        replies = closed_loop(server.port, requests, 8, seconds)
        busy = _busy_fraction(server.faults()["runs"], replies[0].sent, replies[-1].ended - 0.1)
    outside = median([_fraction_outside_graph(reply) for reply in replies])
    return [
        Row(
            "overlap",
            "Decoding and postprocessing overlap with inference: clothing, 8 clients",
            f"a batch runs ≥ {_MIN_BUSY_FRACTION:.0%} of the time",
            f"{busy:.1%}, with {outside:.0%} of a request's work outside the graph; "
            f"{len(replies) / seconds:.0f} requests/s, {sequential:.0f} one at a time",
            busy >= _MIN_BUSY_FRACTION,
            timed=True,
            figures={"busy": busy, "per_second": len(replies) / seconds, "sequential_per_second": sequential},
        )
    ]


def _busy_fraction(runs: list[tuple[float, float, int]], started_at: float, ended_at: float) -> float:
    """Return the fraction of the time in which at least one run was in progress."""
    busy, busy_until = 0.0, started_at
    for start, end, _ in sorted(runs):
        start, end = max(start, busy_until), min(end, ended_at)
        busy += max(0.0, end - start)
        busy_until = max(busy_until, end)
    return busy / (ended_at - started_at)


def _fraction_outside_graph(reply: Reply) -> float:
    """Return the fraction of a request's work that is decoding and postprocessing."""
    timing = dict(part.strip().split(";dur=") for part in reply.header("server-timing").split(",") if ";dur=" in part)
    graph, outside = float(timing["infer"]), float(timing["decode"]) + float(timing["postprocess"])
    return outside / (graph + outside)
