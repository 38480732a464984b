"""Ray Serve beside the plain server, on one machine and in one run; `python -m benchmarks.ray` needs Ray.

    PYTHONPATH=. .ray/bin/python -m benchmarks.ray        # docs/scale-out.md says how to make .ray

Both answer an example of every model; then clients load both in turn. What other programs do on the machine disturbs
both alike, so that only the ratios say something.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.serving import example_request, newest_version, predict_path
from loadtests.clients import closed_loop, prepare_request
from loadtests.server import start_server
from service.ray_serve import MAX_ONGOING_REQUESTS, build_app
from service.smoke import Server, check

_RESULT = Path(__file__).parent / "results" / "ray.json"
_MODELS = ("adult", "imdb", "clothing")
"""One whose cost is nearly all HTTP, one in between, and one whose cost is nearly all computing."""
_REPLICAS = 2
_PATIENCE = {"RAY_raylet_start_wait_time_s": "300", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def measure(models: Path, ray_port: int, *, repeats: int, seconds: float, concurrency: int) -> dict[str, Any]:
    """Return the throughput of both for some models, and the ratios. Ray must be connected."""
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": ray_port})
    serve.run(build_app({"models": str(models.resolve()), "device": "cpu", "replicas": str(_REPLICAS)}))
    with tempfile.TemporaryFile("w+") as log, start_server(models, stderr=log) as (_, plain_port):
        ports = {"plain": plain_port, "ray": ray_port}
        answered = {name: _models_that_answer(port) for name, port in ports.items()}
        if answered["plain"] != answered["ray"]:
            raise RuntimeError(f"Not the same models answer: {answered}.")
        figures = {name: _compare(ports, models, name, repeats, seconds, concurrency) for name in _MODELS}
    serve.shutdown()
    return {
        "replicas": _REPLICAS,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "connections": concurrency,
        "seconds": seconds,
        "answered": answered["ray"],
        "models": figures,
    }


def _models_that_answer(port: int) -> list[str]:
    """Return the models and their tasks. Raises RuntimeError if one does not predict."""
    lines: list[str] = []
    if failed := check(Server(f"http://127.0.0.1:{port}"), lines.append):
        raise RuntimeError(" ".join(failed))
    return sorted(" ".join(line.split()[1:3]).rstrip(",") for line in lines)


def _compare(
    ports: dict[str, int], models: Path, name: str, repeats: int, seconds: float, concurrency: int
) -> dict[str, Any]:
    content_type, body = example_request(newest_version(models / name), name)
    request = prepare_request(predict_path(name), content_type, body)
    rates: dict[str, list[float]] = {server: [] for server in ports}
    failures = 0
    for turn in range(2 * repeats):
        server = ("plain", "ray", "ray", "plain")[turn % 4]  # A B B A: what drifts meets both.
        replies = closed_loop(ports[server], [request], concurrency, seconds)
        good = [reply for reply in replies if reply.status == 200]
        failures += len(replies) - len(good)
        rates[server].append(len(good) / seconds)
    ratios = [ray / plain for ray, plain in zip(rates["ray"], rates["plain"], strict=True) if plain]
    return {
        "plain_per_second": round(statistics.median(rates["plain"]), 1),
        "ray_per_second": round(statistics.median(rates["ray"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "failures": failures,
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--address", default="", help="a running Ray cluster; default: one is started")
    parser.add_argument("--port", type=int, default=8000, help="port of Ray's proxy; default: 8000")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    os.environ.update(_PATIENCE)
    import ray

    if options.address:
        ray.init(address=options.address, log_to_driver=False)
    else:
        ray.init(num_cpus=_REPLICAS, include_dashboard=False, log_to_driver=False)
    try:
        figures = measure(
            options.models,
            options.port,
            repeats=options.repeats,
            seconds=options.seconds,
            concurrency=options.connections,
        )
    finally:
        ray.shutdown()
    result = describe_machine() | figures
    _RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, figure in figures["models"].items():
        print(f"{name:10} ray {figure['ray_per_second']:8.1f}/s  plain {figure['plain_per_second']:8.1f}/s  ", end="")
        print(f"ratio {figure['ratio']} ({figure['ratios'][0]}–{figure['ratios'][-1]}), {figure['failures']} failures")


if __name__ == "__main__":
    main()
