"""`make peers`: measure Sevenfold beside other servers, with the same models, requests and answers.

Each peer is installed into an environment of its own outside the repository. One that cannot be installed, started, or
that answers something else is listed with the reason. Needs wrk (Debian: apt-get install wrk) and Linux.
"""

import argparse
import json
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.peers.contenders import OURS, Contender, PeerServer, Service, our_services, versions_of
from benchmarks.peers.engine import measure_engine
from benchmarks.peers.environments import Environments, Unavailable, default_cache
from benchmarks.peers.measure import Log, Measurement, Plan, Visit, summarize
from benchmarks.peers.peers import PEERS
from benchmarks.peers.questions import MODELS, describe_payload
from benchmarks.peers.report import markdown, svg
from benchmarks.peers.wrk import NoWrk, require_wrk, wrk_version
from loadtests.document import with_section

_DOCUMENT = Path(__file__).parents[1] / "README.md"
_RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """Measure and write the results; return 1 if the service itself could not be measured, 2 without wrk."""
    options = _options()
    # An exception, so that servers are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    file = options.results / "peers.json"
    if not options.render:
        try:
            require_wrk()
            results = _measure(options)
        except (NoWrk, Unavailable, ValueError) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, NoWrk) else 1
        options.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(file.read_text("utf-8"))
    report = markdown(results)
    (options.results / "peers.svg").write_text(svg(results), encoding="utf-8")
    (options.results / "peers.md").write_text(report + "\n", encoding="utf-8")
    if options.results.resolve() == _RESULTS.resolve():
        _DOCUMENT.write_text(with_section(_DOCUMENT.read_text("utf-8"), "peers", report), "utf-8")
    print(report)
    return 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    contenders = _contenders(options)
    versions, reasons = versions_of(contenders)
    if OURS in reasons:
        raise Unavailable(reasons[OURS])
    plan = Plan(tuple(options.models), tuple(options.connections), options.seconds, options.rounds, options.repeats)
    machine = describe_machine()
    settings = {name: contender.settings for name, contender in contenders.items()}
    head = {
        "commit": machine["commit"],
        "plan": asdict(plan),
        "versions": versions,
        "settings": settings,
        "device": options.device,
    }
    path = options.cache / "run.jsonl"
    log = Log.resume(path, head) if options.resume else Log.begin(path, head)
    available = {name: contender for name, contender in contenders.items() if name in versions}
    visits = Measurement(available, options.folder, plan, log).run()
    unavailable = [{"name": name, "model": "", "reason": reason} for name, reason in reasons.items()]
    return {
        "measured": machine,
        "device": options.device,
        "wrk": wrk_version(),
        "plan": asdict(plan),
        "payloads": {model: describe_payload(options.folder, model) for model in plan.models},
        "contenders": [
            {"name": name, "title": each.title, "version": versions.get(name, "–"), "settings": each.settings}
            for name, each in contenders.items()
        ],
        "records": summarize(visits, list(available), plan),
        "unavailable": unavailable + _failures(visits),
        "engine": {model: measure_engine(options.folder, model, options.device) for model in plan.models},
    }


def _failures(visits: list[Visit]) -> list[dict[str, str]]:
    measured = {(visit.name, visit.model) for visit in visits if visit.samples}
    failures = {(v.name, v.model): v.failure for v in visits if v.failure and (v.name, v.model) not in measured}
    return [{"name": name, "model": model, "reason": reason} for (name, model), reason in failures.items()]


def _contenders(options: argparse.Namespace) -> dict[str, Contender]:
    environments = Environments(options.cache, device=options.device)
    flags = tuple(shlex.split(options.flags))
    contenders: list[Contender] = list(our_services(flags, options.device))
    for variant in options.variant:
        name, _, extra = variant.partition("=")
        title, words = f"**Sevenfold, {name}**", (*flags, *shlex.split(extra))
        contenders.append(Service(f"{OURS}_{name}", title, words, options.device))
    peers = [peer for peer in PEERS if options.only is None or peer.name in options.only]
    contenders += [PeerServer(peer, environments, options.device) for peer in peers]
    return {contender.name: contender for contender in contenders}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", nargs="*", choices=names, metavar="PEER", help=f"of {', '.join(names)}; default: all")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help=f"default: {' '.join(MODELS)}"
    )
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 32, 128], help="default: 1 8 32 128")
    parser.add_argument("--seconds", type=float, default=6.0, help="duration of each sample; default: 6")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured; default: 3")
    parser.add_argument(
        "--repeats", type=int, default=2, help="more rounds, at most, for samples that were noisy; default: 2"
    )
    parser.add_argument("--flags", default="", help="settings of the service, as one word: --flags='--decoders 1'")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="measure the service also with these settings; may be repeated",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut off")
    parser.add_argument("--render", action="store_true", help="only write table and plot from peers.json again")
    parser.add_argument("--folder", type=Path, default=Path("models"), help="folder of the models; default: models")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the environments")
    options = parser.parse_args()
    if options.seconds < 1 or options.rounds < 1 or options.repeats < 0 or min(options.connections) < 1:
        parser.error("--seconds, --rounds and --connections must be at least 1, and --repeats at least 0")
    options.connections.sort()
    return options


if __name__ == "__main__":
    sys.exit(main())
