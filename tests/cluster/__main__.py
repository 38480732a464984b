"""`python -m tests.cluster`: install, change and remove the Helm chart on a real API server.

`python -m tests.cluster tools` builds the control plane first (once). The exit status is 1 if a step fails, and 2 if a
program is missing. Linux only.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.control_plane import run_cluster
from tests.cluster.helm import Helm
from tests.cluster.lifecycle import CHANGE, Case, run_case
from tests.cluster.report import Recorder, table
from tests.cluster.tools import DEFAULT_VERSION, VERSIONS, MissingTool, build, find_binaries, find_helm

CHART = Path("helm")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.action == "tools":
        build(options.kubernetes or list(VERSIONS))
        return 0
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    recorder = Recorder()
    for version in options.kubernetes or [DEFAULT_VERSION]:
        binaries = find_binaries(version)
        with tempfile.TemporaryDirectory() as home:
            chart = Path(shutil.copytree(options.chart, Path(home, "chart")))
            folder = Path(options.logs or tempfile.mkdtemp(prefix="sevenfold-cluster-"))
            print(f"Kubernetes {version}; logs: {folder}", flush=True)
            with run_cluster(binaries, folder) as cluster:
                for major in options.helm or (3, 4):
                    helm = Helm(find_helm(major), cluster.kubeconfig, chart, Path(home))
                    for values in sorted(chart.glob("ci/*-values.yaml")):
                        name = values.name.removesuffix("-values.yaml")
                        if not options.only or any(part in name for part in options.only):
                            run_case(cluster, Case(name, values, helm, helm.version(), CHANGE), recorder)
    print(table(recorder.steps))
    print(f"{time.monotonic() - recorder.started:.0f} s")
    return int(not all(step.ok for step in recorder.steps))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["run", "tools"], default="run")
    parser.add_argument("--kubernetes", action="append", metavar="VERSION")
    parser.add_argument("--chart", type=Path, default=CHART)
    parser.add_argument("--helm", action="append", type=int, choices=[3, 4])
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--logs", type=Path)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MissingTool as error:
        print(error, file=sys.stderr)
        sys.exit(2)
