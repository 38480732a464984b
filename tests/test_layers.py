"""Which package, and within a package which room, may import which."""

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
"""What no file of a package may import."""

ROOMS = {
    "service": ("settings", "errors", "metrics", "process", "backends", "engine", "models", "http", "server", "app"),
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
        "train_all",
    ),
}
"""The rooms of a package, from the ground up: each imports only from rooms that stand before it."""

LEAVES = ("service.settings", "service.errors", "service.metrics", "service.process", "service.backends")
"""Rooms that know no other room of the service."""

UNKNOWN_TO = {
    "service.engine": ("fastapi", "starlette", "onnxruntime"),
    "service.engine.scheduler": ("tasks", "numpy"),
    "service.engine.queue": ("tasks", "numpy"),
    "service.engine.batcher": ("service.errors", "service.engine.pipeline"),
    "service.engine.admission": ("numpy", "service.engine.batcher", "service.engine.pipeline"),
    "service.models": ("fastapi", "starlette", "onnxruntime"),
    "service.http": ("numpy", "onnxruntime"),
    "service.backends.base": ("onnxruntime",),
    "service.backends.memory": ("onnxruntime", "tasks"),
    "service.process": ("tasks", "numpy", "fastapi", "starlette"),
    "service.metrics": ("tasks", "numpy"),
    "training.core": ("torchvision", "onnx", "onnxruntime", "matplotlib"),
    "training.engine": ("torchvision", "onnx", "onnxruntime", "matplotlib"),
}
"""What a room, or one of its files, must not know beside the rooms that stand after it."""


def files_of(module: str) -> list[Path]:
    path = ROOT / module.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file imports, under functions and `TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if (ROOT / inner.replace(".", "/")).with_suffix(".py").exists() else node.module


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room_of(module: str, package: str) -> str | None:
    return module.split(".")[1] if is_of(module, package) and module != package else None


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_it_must_not_know(package: str) -> None:
    wrong = {
        f"{module_of(path)} imports {module}"
        for path in files_of(package)
        for module in imports_of(path)
        if any(is_of(module, forbidden) for forbidden in FORBIDDEN[package])
    }

    assert wrong == set()


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_its_place_in_the_order(package: str) -> None:
    rooms = {room_of(module_of(path), package) for path in files_of(package)} - {None, "__main__"}

    assert rooms == set(ROOMS[package])


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(package: str) -> None:
    order = {room: place for place, room in enumerate((*ROOMS[package], "__main__"))}
    wrong = {
        f"{module_of(path)} imports {module}"
        for path in files_of(package)
        if (mine := room_of(module_of(path), package))
        for module in imports_of(path)
        if (other := room_of(module, package)) and order[other] > order[mine]
    }

    assert wrong == set()


@pytest.mark.parametrize("module", LEAVES)
def test_a_leaf_knows_no_other_room_of_the_service(module: str) -> None:
    others = {name for path in files_of(module) for name in imports_of(path) if is_of(name, "service")}

    assert {name for name in others if not is_of(name, module)} == set()


@pytest.mark.parametrize("module", UNKNOWN_TO)
def test_a_room_does_not_know_what_it_has_no_use_for(module: str) -> None:
    imported = {name for path in files_of(module) for name in imports_of(path)}

    assert {name for name in imported if any(is_of(name, forbidden) for forbidden in UNKNOWN_TO[module])} == set()


def test_no_task_s_learner_imports_another_s() -> None:
    def folder_of(module: str) -> str | None:
        return module.split(".")[2] if module.startswith("training.learners.") else None

    wrong = {
        f"{module_of(path)} imports {module}"
        for path in files_of("training.learners")
        for module in imports_of(path)
        if folder_of(module) not in (None, folder_of(module_of(path)))
    }

    assert wrong == set()


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    imports = {module_of(path): {m for m in imports_of(path) if is_of(m, package)} for path in files_of(package)}
    left = dict(imports)

    while done := [module for module, needed in left.items() if not needed & (left.keys() - {module})]:
        for module in done:
            del left[module]

    assert left == {}


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (
            ("tasks.classification", "tasks.tabular", "tasks.manifest"),
            ("torch", "onnxruntime", "fastapi", "training", "service"),
        ),
        (
            ("service.app", "service.__main__"),
            ("torch", "torchvision", "training", "sklearn", "polars", "onnx", "httpx"),
        ),
        (
            ("training.__main__", "training.publishing.export", "training.publishing.publish"),
            ("service", "fastapi", "uvicorn", "prometheus_client"),
        ),
    ],
    ids=["tasks", "service", "training"],
)
def test_each_package_loads_where_what_it_must_not_need_is_missing(
    modules: tuple[str, ...], blocked: tuple[str, ...]
) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {', '.join(modules)}"

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
