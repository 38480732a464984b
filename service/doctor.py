"""`python -m service doctor`: whether the server would work here, what would not, and what to do about it.

It starts nothing, loads no model unless it is asked to, and needs no network. The exit status is 1 if there is a
problem, which the server could not work with; a warning is something that works, though probably not as intended.
"""

import argparse
import json
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from service.backends.base import BackendError
from service.backends.cores import available_cores, cpu_quota
from service.backends.cuda_libraries import gpu_is_visible
from service.backends.memory import HostMemory
from service.backends.runtimes import GRAPH_FILES, make_runtime
from service.engine.memory_budget import MAX_WORK_BYTES, MemoryPlan, model_bytes
from service.models.discovery import FoundVersion, ModelFolder
from service.process.health_check import check, local_address
from service.process.watched_files import UnusableFile, read_small_file
from service.settings import PREFIX, InvalidSetting, Settings, find_service_links, read_settings
from service.supervisor.division import REQUEST_BYTES, process_bytes, process_count, settings_for_one
from service.tracing.start import TracingUnavailable, check_environment, is_requested
from tasks.manifest import BrokenModel, read_manifest, verify_files

Level = Literal["ok", "warning", "problem"]
_MIN_FILES = 4096
"""Open files that a server needs if it is to keep a thousand clients connected."""
_PACKAGES = ("fastapi", "uvicorn", "pydantic", "numpy", "pillow", "tokenizers", "prometheus-client")
_RUNTIMES = {
    "onnxruntime": ("ONNX Runtime", "onnxruntime, or onnxruntime-gpu"),
    "torchscript": ("TorchScript", "torch"),
}
"""Title of each runtime, and the packages that it is in."""
_BASE_BYTES = 230_000_000
"""What the server needs without any model: its process, and those that decode."""
_MIN_CERTIFICATE_DAYS = 14
_MIN_FREE_BYTES = 200_000_000
"""Less than this for requests, and photos of a usual camera are refused."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        area: access, device, libraries, settings, models, limits, port, service links or tracing.
        level: how it is.
        text: what is so, or what is wrong and what to do, in a sentence.
    """

    area: str
    level: Level
    text: str


def run_doctor(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Print what was checked, and return the exit status: 1 if there is a problem, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m service doctor",
        description="Check whether the server would work here. All flags of the server are accepted, too, and checked.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.add_argument("--load", action="store_true", help="also load each model and run it once")
    options, flags = parser.parse_known_args(arguments)
    checks = list(run_checks(flags, environment, load=options.load))
    if options.json:
        report = {"ok": all(check.level != "problem" for check in checks), "checks": [asdict(c) for c in checks]}
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print("\n".join(f"{check.level:<8} {check.area}: {check.text}" for check in checks))
        counts = {level: sum(check.level == level for check in checks) for level in ("problem", "warning")}
        print(f"\n{counts['problem']} problem(s), {counts['warning']} warning(s).")
    return 1 if any(check.level == "problem" for check in checks) else 0


def run_checks(
    flags: Sequence[str], environment: Mapping[str, str], *, root: Path = Path("/"), load: bool = False
) -> Iterator[Check]:
    """Yield all checks.

    Args:
        flags: of the server.
        environment: its environment.
        root: the folder that contains /proc, /sys and /dev.
        load: whether to load the models.
    """
    yield from _check_libraries()
    try:
        settings = read_settings(flags, environment)
        links = find_service_links(environment)  # Names only: a value may be a secret.
        given = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
        given += [name for name in environment if name.startswith(PREFIX) and name not in links]
        yield Check("settings", "ok", f"Valid: {', '.join(sorted(given))}." if given else "Defaults.")
    except InvalidSetting as error:
        yield Check("settings", "problem", str(error))
        settings = Settings()
    is_running = _is_running(settings)
    yield from _check_service_links(environment)
    yield from _check_access(settings)
    yield from _check_tracing(environment)
    yield from _check_device(settings, root)
    yield from _check_models(settings, load=load)
    yield from _check_cores(root)
    yield _check_processes(settings, root)
    yield from _check_memory(settings, root, is_running=is_running)
    yield from _check_files(root)
    if is_running:
        yield Check("port", "ok", f"A server with these settings is live on port {settings.port}.")
        return
    for name, port in (("port", settings.port), ("admin-port", settings.admin_port)):
        if port or name == "port":
            yield _check_port(settings.host, port, name)


def _check_libraries() -> Iterator[Check]:
    supported = sys.version_info >= (3, 11)
    yield Check(
        "libraries", "ok" if supported else "problem", f"Python {platform.python_version()}; 3.11 or later is needed."
    )
    found, missing = {}, []
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        text = f"{', '.join(missing)} not installed: pip install -r requirements/serve.txt."
        yield Check("libraries", "problem", text)
    yield Check("libraries", "ok", ", ".join(f"{package} {number}" for package, number in found.items()) + ".")


def _check_service_links(environment: Mapping[str, str]) -> Iterator[Check]:
    if links := find_service_links(environment):
        yield Check(
            "service links",
            "warning",
            f"Variables describe a Kubernetes Service called like this program: {', '.join(links[:3])}. "
            "They are ignored. Set enableServiceLinks: false in the pod's spec.",
        )
    else:
        yield Check("service links", "ok", "No variable of a Kubernetes Service looks like a setting.")


def _check_access(settings: Settings) -> Iterator[Check]:
    """Check who may use the server: API keys, certificate, origins."""
    try:
        # Here, since a package of theirs may be what is missing.
        from service.http.api_keys import ApiKeys
        from service.http.cors import check_origins
        from service.http.tls import ServerCertificate
    except ImportError as error:
        yield Check("access", "problem", f"It cannot be checked: {error}.")
        return
    try:
        origins = check_origins(settings.cors_origins)
        if settings.api_keys_file is not None:
            keys = ApiKeys(settings.api_keys_file)
            keys.use((read_small_file(settings.api_keys_file),))
            yield Check("access", "ok", f"{settings.api_keys_file}: {len(keys)} valid API key(s).")
        if settings.tls_cert is not None and settings.tls_key is not None:
            certificate = ServerCertificate(settings.tls_cert, settings.tls_key)
            certificate.load((read_small_file(settings.tls_cert), read_small_file(settings.tls_key)))
            yield _check_certificate(settings.tls_cert, certificate.problem, certificate.expires_at - time.time())
    except (UnusableFile, InvalidSetting) as error:
        yield Check("access", "problem", str(error))
        return
    if origins:
        yield Check("access", "ok", f"Pages of {', '.join(origins)} may use the server.")


def _check_certificate(path: Path, problem: str | None, seconds_left: float) -> Check:
    days = int(seconds_left // 86_400)
    if problem is not None:
        return Check("access", "warning", f"{path}: the certificate {problem}, so that clients refuse to connect.")
    if days < _MIN_CERTIFICATE_DAYS:
        return Check("access", "warning", f"{path}: the certificate expires in {days} day(s): replace it.")
    return Check("access", "ok", f"{path}: the certificate is valid for {days:,} days, and the key belongs to it.")


def _check_tracing(environment: Mapping[str, str]) -> Iterator[Check]:
    if not is_requested(environment):
        return
    try:
        check_environment(environment)
        yield Check("tracing", "ok", "Traces are sent to the collector that the environment names.")
    except TracingUnavailable as error:
        yield Check("tracing", "problem", str(error))


def _check_device(settings: Settings, root: Path) -> Iterator[Check]:
    has_gpu = gpu_is_visible(root)
    try:
        runtime = make_runtime(settings.backend, settings.device, settings.threads)
        problem = None if settings.device == "cpu" else runtime.cuda_problem()
    except Exception as error:  # A missing package, or a library of it that the system cannot load.
        title, packages = _RUNTIMES[settings.backend]
        yield Check("device", "problem", f"{title} cannot be used: {error}. Install {packages}.")
        return
    visible = "A GPU is visible" if has_gpu else "No GPU is visible"
    if settings.device == "cpu":
        yield Check("device", "ok", f"{visible}; the setting asks for the CPU. {runtime.description}.")
    elif problem is None:
        yield Check("device", "ok", f"{visible}, and {runtime.description} uses it.")
    elif settings.device == "cuda":
        yield Check("device", "problem", f"CUDA was requested, but {problem}")
    elif has_gpu:
        yield Check("device", "warning", f"{visible}, but it is not used: {problem}")
    else:
        yield Check("device", "ok", f"{visible}; models run on the CPU. {runtime.description}.")


def _check_models(settings: Settings, *, load: bool) -> Iterator[Check]:
    try:
        found = ModelFolder(settings.models, frozenset(settings.only)).look()
    except BrokenModel as error:
        yield Check("models", "problem", f"{error} Mount a volume there, or set --models.")
        return
    models = {} if found is None else found.models
    if not models:
        text = (
            f"{settings.models} contains no models: the server starts, and is not ready until one is published there."
        )
        yield Check("models", "warning", text)
    for name in settings.only:
        if name not in models:
            yield Check("models", "warning", f"--only names {name}, which is not in {settings.models}.")
    for name, versions in models.items():
        served = _served_versions(settings, name, versions)
        if not served:
            text = f"{name}: the setting pin selects version {settings.pin[name]}, which is not in the folder."
            yield Check("models", "problem", text)
        for found_version in served:
            yield _check_version(settings, name, found_version, load=load)


def _served_versions(settings: Settings, name: str, versions: Sequence[FoundVersion]) -> Sequence[FoundVersion]:
    """Return the versions of a model that the settings select."""
    if name in settings.pin:
        return [found for found in versions if found.version == str(settings.pin[name])]
    return versions[: settings.versions or None]


def _check_version(settings: Settings, name: str, found: FoundVersion, *, load: bool) -> Check:
    folder, title = settings.models / name / found.version, f"{name}/{found.version}"
    if found.problem is not None:
        return Check("models", "problem", f"{title}: {found.problem}")
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        if GRAPH_FILES[settings.backend] not in manifest.files:
            raise BrokenModel(f"There is no {GRAPH_FILES[settings.backend]}, which --backend asks for.")
        seconds = _load_model(settings, folder) if load else None
    except (BrokenModel, BackendError) as error:
        return Check("models", "problem", f"{title}: {error} Publish it again, or copy it again.")
    except Exception as error:  # However a folder is broken, the others are to be checked.
        return Check("models", "problem", f"{title}: {type(error).__name__}: {error}. Publish it again.")
    megabytes = sum(entry.size for entry in manifest.files.values()) / 1e6
    loaded = "" if seconds is None else f", loaded in {seconds:.1f} s"
    return Check("models", "ok", f"{title}: {manifest.task}, {megabytes:.1f} MB, checksums right{loaded}.")


def _load_model(settings: Settings, folder: Path) -> float:
    started = time.perf_counter()
    task, path = read_manifest(folder).load_task(folder), folder / GRAPH_FILES[settings.backend]
    make_runtime(settings.backend, settings.device, settings.threads)(path.read_bytes(), task.inputs, task.outputs)
    return time.perf_counter() - started


def _check_cores(root: Path) -> Iterator[Check]:
    cores, quota = available_cores(root), cpu_quota(root)
    if quota is None:
        yield Check("limits", "ok", f"{cores} cores, without a quota.")
    elif quota < 1:
        text = f"A quota of {quota:g} cores: one batch at a time, which the kernel pauses. One core or more is better."
        yield Check("limits", "warning", text)
    else:
        yield Check("limits", "ok", f"A quota of {quota:g} cores: {cores} threads compute at a time.")


def _check_processes(settings: Settings, root: Path) -> Check:
    try:
        chosen = process_count(settings, root)
    except InvalidSetting as error:
        return Check("limits", "problem", str(error))
    if chosen.problem is not None:
        return Check("limits", "warning", f"Processes: {chosen.problem}.")
    cores = available_cores(root)
    if chosen.count > cores:
        text = f"{chosen.count} server processes on {cores} core(s): more processes than cores only cost memory."
        return Check("limits", "warning", text)
    if chosen.count == 1:
        return Check("limits", "ok", "1 server process.")
    own = settings_for_one(settings, chosen.count, cores)
    return Check(
        "limits",
        "ok",
        f"{chosen.count} server processes; each has {own.threads} thread(s) to compute and {own.decoders} to decode.",
    )


def _process_count(settings: Settings, root: Path) -> int:
    try:
        return process_count(settings, root).count
    except InvalidSetting:  # It is a problem of its own.
        return 1


def _check_memory(settings: Settings, root: Path, *, is_running: bool) -> Iterator[Check]:
    memory = HostMemory(root)
    limit, free = memory.limit(), memory.free()
    if free is None:
        yield Check("limits", "warning", "The free memory is unknown, so that requests are not limited by it.")
        return
    # What a running server needs is no longer free.
    needed = 0 if is_running else _BASE_BYTES + sum(model_bytes(size) for size in _graph_sizes(settings))
    chosen = _process_count(settings, root)
    own = settings if chosen == 1 else settings_for_one(settings, chosen, available_cores(root))
    if not is_running and chosen > 1:
        needed += (chosen - 1) * (process_bytes(settings) - REQUEST_BYTES)
    processes = sum(own.worker_counts(available_cores(root)))
    plan = MemoryPlan.of(max(0, free - needed) / chosen, processes=processes, started=processes if is_running else 0)
    has = f"a limit of {limit // 1_000_000:,} MB" if limit is not None else "no limit"
    facts = f"{has}, {free // 1_000_000:,} MB free" + (
        " beside the running server" if is_running else f"; the server and its models need about {needed // 10**6:,} MB"
    )
    if needed > free:
        text = f"{facts}. Not all models can be loaded: raise the limit, or serve fewer with --only."
        yield Check("limits", "problem", f"Memory: {text}")
    elif free - needed < _MIN_FREE_BYTES:
        yield Check(
            "limits", "warning", f"Memory: {facts}. Large photos will be refused, and others wait: raise the limit."
        )
    elif plan.is_tight:
        at_once = max(1, int(plan.work // MAX_WORK_BYTES)) if plan.work >= MAX_WORK_BYTES else 1
        text = (
            f"{facts}. Requests share the rest and wait for each other; of the largest, {at_once} is decoded at a time."
        )
        yield Check("limits", "ok", f"Memory: {text}")
    else:
        yield Check("limits", "ok", f"Memory: {facts}. Requests do not have to wait for memory.")


def _graph_sizes(settings: Settings) -> Iterator[int]:
    try:
        found = ModelFolder(settings.models, frozenset(settings.only)).look()
    except BrokenModel:
        return
    for name, versions in found.models.items() if found else ():
        for served in _served_versions(settings, name, versions):
            path = settings.models / name / served.version / GRAPH_FILES[settings.backend]
            if path.is_file():
                yield path.stat().st_size


def _check_files(root: Path) -> Iterator[Check]:
    try:
        import resource  # Unix has it.

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = 0 <= soft < _MIN_FILES
        text = f"{soft:,} open files{f'; with ulimit -n {_MIN_FILES} or more, a thousand clients fit' if few else ''}."
        yield Check("limits", "warning" if few else "ok", text)
    except ImportError:
        pass
    is_read_only = bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    yield Check(
        "limits",
        "ok",
        "The root file system is read-only."
        if is_read_only
        else "The root file system is writable; the server does not need that.",
    )
    yield _check_temporary(tempfile.gettempdir)


def _check_temporary(find: Callable[[], str]) -> Check:
    try:
        with tempfile.TemporaryFile(dir=find()):
            return Check("limits", "ok", "The folder for temporary files is writable.")
    except OSError as error:
        return Check(
            "limits", "ok", f"There is no writable folder for temporary files ({error}); the server needs none."
        )


def _is_running(settings: Settings) -> bool:
    """Return whether the server that is asked about is live on this machine, as in a pod that one looks into."""
    has_tls = settings.tls_cert is not None
    address = local_address(settings.host, settings.port, settings.admin_port, has_tls=has_tls)
    return bool(settings.port) and check(address) is None


def _check_port(host: str, port: int, flag: str) -> Check:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return Check("port", "ok", f"{host}:{port} is free.")
    except OSError as error:
        text = f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses it, or set --{flag}."
        return Check("port", "problem", text)
