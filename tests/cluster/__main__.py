"""`python -m tests.cluster`: install, change and remove the Helm chart on a real API server.

`python -m tests.cluster tools` builds the programs of the control plane first, once. For every file of helm/ci, with
Helm 3 and 4, a release is validated, installed, upgraded, rolled back and uninstalled in a namespace that enforces the
Pod Security Standard "restricted". With --write, the table goes into docs/kubernetes-tested.md. The exit status is 1 if
a step fails, and 2 if a program is missing. Linux only.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from tests.cluster.control_plane import Cluster, run_cluster
from tests.cluster.drain import run_drain
from tests.cluster.extras import run_extras
from tests.cluster.helm import Helm
from tests.cluster.lifecycle import CHANGE, Case, run_case
from tests.cluster.processes import ClusterError
from tests.cluster.refusals import run_bad_values, run_controls
from tests.cluster.report import Recorder, describe, section, table, to_json, with_section
from tests.cluster.stand_in import run_stand_in
from tests.cluster.tools import DEFAULT_VERSION, VERSIONS, MissingTool, build, find_binaries, find_helm

CHART, DOCUMENT = Path("helm"), Path("docs/kubernetes-tested.md")
CHECKS = ("controls", "refused", "drain", "served", "extras")
"""What is tried besides the files of values; `--only` takes these names too."""


def main(arguments: Sequence[str]) -> int:
    """Run the action; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.action == "tools":
        build(options.kubernetes or list(VERSIONS))
        return 0
    if not (options.chart / "Chart.yaml").is_file():
        raise MissingTool(f"{options.chart} is not a Helm chart; say where it is with --chart FOLDER.")
    _check(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what was started is ended.
    return _run(options)


def _check(options: argparse.Namespace) -> None:
    """Find mistakes before the run and not after it. Raises ClusterError."""
    known = [*_names(options.chart), *CHECKS]
    if unknown := [name for name in options.only or [] if name not in known]:
        raise ClusterError(f"--only {unknown[0]}: no such case. There are {', '.join(known)}.")
    if options.write:
        with_section(_old_document(options.document), "")


def _names(chart: Path) -> list[str]:
    return [path.name.removesuffix("-values.yaml") for path in sorted(chart.glob("ci/*-values.yaml"))]


def _old_document(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _run(options: argparse.Namespace) -> int:
    recorder, seen = Recorder(), []
    versions = options.kubernetes or [DEFAULT_VERSION]
    programs = [find_binaries(version) for version in versions]
    for major in options.helm:
        find_helm(major)
    for binaries in programs:
        logs = Path(options.logs or tempfile.mkdtemp(prefix="sevenfold-cluster-"), binaries.version)
        print(f"Kubernetes {binaries.version}; logs are in {logs}", flush=True)
        with tempfile.TemporaryDirectory(prefix="sevenfold-helm-") as home:
            # A copy, so that all steps see the same chart, whoever edits it meanwhile.
            chart = Path(shutil.copytree(options.chart, Path(home, "chart")))
            with run_cluster(binaries, logs) as cluster:
                helms = [Helm(find_helm(major), cluster.kubeconfig, chart, Path(home)) for major in options.helm]
                seen.append(describe(cluster, helms))
                _run_all(cluster, helms, recorder, options)
    return _report(recorder, seen, options)


def _run_all(cluster: Cluster, helms: Sequence[Helm], recorder: Recorder, options: argparse.Namespace) -> None:
    recorder.kubernetes = cluster.binaries.version
    only = options.only or []
    if _is_wanted("controls", only):
        with recorder.case("controls", "-"):
            run_controls(cluster, recorder)
    for helm in helms:
        who = helm.version()
        for case in _cases(helm, who, only):
            run_case(cluster, case, recorder)
        for name, run in (("refused", run_bad_values), ("drain", run_drain), ("served", run_stand_in)):
            if _is_wanted(name, only):
                with recorder.case(name, who):
                    run(cluster, helm, who, recorder)
    if _is_wanted("extras", only):
        with recorder.case("extras", "-"):
            run_extras(cluster, helms[0].chart / "extras", recorder)


def _cases(helm: Helm, who: str, only: Sequence[str]) -> Iterator[Case]:
    for name in _names(helm.chart):
        if _is_wanted(name, only):
            yield Case(name, helm.chart / "ci" / f"{name}-values.yaml", helm, who, CHANGE)


def _is_wanted(name: str, only: Sequence[str]) -> bool:
    return not only or name in only


def _report(recorder: Recorder, seen: Sequence[dict[str, str]], options: argparse.Namespace) -> int:
    seconds = time.monotonic() - recorder.started
    failed = [step for step in recorder.steps if not step.ok]
    print(f"\n{table(recorder.steps)}\n")
    print(f"{len(recorder.steps) - len(failed)} of {len(recorder.steps)} steps ended well, in {seconds:.0f} s")
    machine = describe_machine()
    if options.json:
        options.json.write_text(json.dumps(to_json(recorder.steps, seen, machine, seconds), indent=1) + "\n", "utf-8")
    if options.write:
        text = section(recorder.steps, seen, machine, seconds)
        options.document.write_text(with_section(_old_document(options.document), text), "utf-8")
    return int(bool(failed) or not recorder.steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "action", nargs="?", choices=["run", "tools"], default="run", help="tools: build what is missing, and end"
    )
    parser.add_argument(
        "--kubernetes",
        action="append",
        metavar="VERSION",
        choices=list(VERSIONS),
        help=f"one of {', '.join(VERSIONS)}; can be repeated; default: {DEFAULT_VERSION}, and all for tools",
    )
    parser.add_argument("--chart", type=Path, default=CHART, metavar="FOLDER", help="the chart; default: helm")
    parser.add_argument("--helm", type=int, choices=[3, 4], nargs="+", default=[3, 4], help="default: both")
    parser.add_argument(
        "--only", nargs="+", action="extend", metavar="NAME", help=f"a file of values, or {', '.join(CHECKS)}"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="default: a new folder for temporary files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step and all versions into a file")
    parser.add_argument("--write", action="store_true", help="write the table into the document")
    parser.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE", help=f"default: {DOCUMENT}")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (MissingTool, ClusterError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
