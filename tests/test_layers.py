"""The law of imports: which package, and within a package which room, may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "tasks": ("training", "service", "torch", "onnxruntime", "fastapi"),
    "training": ("service", "fastapi"),
    "service": ("training", "torch", "sklearn"),
}
"""Modules that no file of a package may import."""
EXCEPTIONS = {"service.backends.torchscript imports torch"}
"""A file that is imported only where a setting asks for it."""

ROOMS = {
    "service": (
        "settings",
        "errors",
        "metrics",
        "tracing",
        "process",
        "backends",
        "engine",
        "decoding",
        "models",
        "supervisor",
        "importing",
        "fetching",
        "smoke",
        "http",
        "server",
        "membership",
        "app",
        "doctor",
        "ray_serve",
    ),
    "training": (
        "core",
        "engine",
        "data",
        "evaluation",
        "publishing",
        "reporting",
        "vision",
        "learners",
        "studies",
        "recipes",
        "registry",
        "session",
        "update_catalog",
        "update_parameters",
        "publish_variants",
        "train_all",
    ),
}
"""The rooms of a package, lowest first. A room imports only from rooms before it."""

LEAVES = (
    "service.settings",
    "service.errors",
    "service.metrics",
    "service.tracing",
    "service.process",
    "service.backends",
)
"""Rooms that import no other room of the service."""

FORBIDDEN_IN_ROOM = {
    "service.engine": ("fastapi", "starlette", "onnxruntime", "opentelemetry"),
    "service.engine.scheduler": ("service", "tasks", "numpy"),
    "service.engine.latency": ("service",),
    "service.engine.queue": ("tasks", "numpy", "service.engine.batcher", "service.engine.pipeline"),
    "service.engine.batcher": ("service.errors", "service.engine.pipeline"),
    "service.engine.admission": ("numpy", "service.engine.batcher", "service.engine.pipeline"),
    "service.engine.preparer": ("numpy", "service.engine.batcher", "service.engine.pipeline"),
    "service.decoding": ("fastapi", "starlette", "uvicorn", "onnxruntime"),
    "service.models": ("fastapi", "starlette", "onnxruntime"),
    "service.models.promotion": ("service",),
    "service.models.shadow_traffic": ("numpy",),
    "service.http": ("numpy", "onnxruntime", "opentelemetry"),
    "service.backends.base": ("onnxruntime",),
    "service.backends.memory": ("onnxruntime", "tasks"),
    "service.process": ("tasks", "numpy", "fastapi", "starlette"),
    "service.metrics": ("tasks", "numpy"),
    "training.core": ("torchvision", "onnx", "onnxruntime", "matplotlib"),
    "training.engine": ("torchvision", "onnx", "onnxruntime", "matplotlib"),
}
"""Modules that a room, or one of its files, must not import, in addition to the rooms after it."""


def files_in(module: str) -> list[Path]:
    path = ROOT / module.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, including imports in functions and under `TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                is_file = (ROOT / submodule.replace(".", "/")).with_suffix(".py").exists()
                yield submodule if is_file else node.module


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room_of(module: str, package: str) -> str | None:
    return module.split(".")[1] if is_in(module, package) and module != package else None


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_no_forbidden_module(package: str) -> None:
    violations = {
        f"{module_name(path)} imports {module}"
        for path in files_in(package)
        for module in imported_modules(path)
        if any(is_in(module, forbidden) for forbidden in FORBIDDEN[package])
    }

    assert violations - EXCEPTIONS == set()


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_listed(package: str) -> None:
    rooms = {room_of(module_name(path), package) for path in files_in(package)} - {None, "__main__"}

    assert rooms == set(ROOMS[package])


@pytest.mark.parametrize("package", ROOMS)
def test_room_imports_only_from_rooms_before_it(package: str) -> None:
    order = {room: position for position, room in enumerate((*ROOMS[package], "__main__"))}
    violations = {
        f"{module_name(path)} imports {module}"
        for path in files_in(package)
        if (room := room_of(module_name(path), package))
        for module in imported_modules(path)
        if (imported_room := room_of(module, package)) and order[imported_room] > order[room]
    }

    assert violations == set()


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_no_other_room_of_the_service(leaf: str) -> None:
    imported = {module for path in files_in(leaf) for module in imported_modules(path) if is_in(module, "service")}

    assert {module for module in imported if not is_in(module, leaf)} == set()


@pytest.mark.parametrize("room", FORBIDDEN_IN_ROOM)
def test_room_imports_no_forbidden_module(room: str) -> None:
    imported = {module for path in files_in(room) for module in imported_modules(path)}

    assert {m for m in imported if any(is_in(m, forbidden) for forbidden in FORBIDDEN_IN_ROOM[room])} == set()


def test_learner_of_a_task_imports_no_other_task_s_learner() -> None:
    def folder_of(module: str) -> str | None:
        return module.split(".")[2] if module.startswith("training.learners.") else None

    violations = {
        f"{module_name(path)} imports {module}"
        for path in files_in("training.learners")
        for module in imported_modules(path)
        if folder_of(module) not in (None, folder_of(module_name(path)))
    }

    assert violations == set()


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_circular_imports(package: str) -> None:
    remaining = {
        module_name(path): {m for m in imported_modules(path) if is_in(m, package)} for path in files_in(package)
    }

    while resolved := [name for name, imports in remaining.items() if not imports & (remaining.keys() - {name})]:
        for name in resolved:
            del remaining[name]

    assert remaining == {}


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (
            [module_name(path) for path in files_in("tasks")],
            ("torch", "onnxruntime", "fastapi", "training", "service"),
        ),
        (
            ["service.decoding.fork_server", "service.decoding.worker", "service.decoding.body_formats"],
            ("torch", "onnxruntime", "fastapi", "starlette", "uvicorn", "training"),
        ),
        (
            ["service.app", "service.__main__"],
            (
                "torch",
                "torchvision",
                "training",
                "sklearn",
                "polars",
                "onnx",
                "httpx",
                "opentelemetry.sdk",
                "opentelemetry.exporter",
            ),
        ),
        (
            ["training.__main__", "training.publishing.export", "training.publishing.publish"],
            ("service", "fastapi", "uvicorn", "prometheus_client"),
        ),
    ],
    ids=["tasks", "worker processes", "service", "training"],
)
def test_package_loads_without_modules_it_must_not_need(modules: list[str], blocked: tuple[str, ...]) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {', '.join(modules)}"

    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert process.returncode == 0, process.stderr
