"""Training and service never import each other; both import tasks; tasks imports neither, nor what either runs on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "tasks": ("training", "service", "torch", "onnxruntime", "fastapi"),
    "training": ("service", "fastapi"),
    "service": ("training", "torch", "sklearn"),
}
_HTTP = ("service.routes", "service.repository", "service.app", "fastapi", "starlette")
INSIDE_SERVICE = {
    "batcher": (*_HTTP, "service.pipeline", "service.errors", "onnxruntime"),
    "scheduler": ("service", "tasks", "numpy"),
    "tickets": (*_HTTP, "service.pipeline", "service.batcher", "tasks", "numpy"),
    "costs": ("service",),
    "admission": (*_HTTP, "service.pipeline", "service.batcher", "numpy", "onnxruntime"),
    "pipeline": ("service.routes", "service.repository", "service.app", "fastapi", "starlette", "onnxruntime"),
    "repository": ("service.routes", "service.app", "fastapi", "starlette", "onnxruntime"),
    "proof": ("service.routes", "service.repository", "service.app", "fastapi", "starlette", "onnxruntime"),
    "shadow": ("service.routes", "service.app", "fastapi", "numpy", "onnxruntime"),
    "trial": ("service",),
    "errors": ("service",),
    "metrics": ("service",),
    "logs": ("service",),
    "settings": ("service",),
    "health": ("service",),
    "watchdog": ("service",),
    "backends/memory": ("service", "onnxruntime"),
    "backends/failures": ("service.pipeline", "service.batcher", "onnxruntime"),
    "backends/base": ("service.pipeline", "service.batcher", "onnxruntime"),
    "routes/predict": ("numpy", "onnxruntime"),
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_it_must_not_know(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for module in imports_of(path)
        for forbidden in FORBIDDEN[package]
        if is_of(module, forbidden)
    }

    assert wrong == set()


@pytest.mark.parametrize("module", INSIDE_SERVICE)
def test_the_rooms_of_the_service_know_only_what_stands_below_them(module: str) -> None:
    imported = imports_of(ROOT / "service" / f"{module}.py")

    assert {name for name in imported for forbidden in INSIDE_SERVICE[module] if is_of(name, forbidden)} == set()


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
            ("training.__main__", "training.export", "training.publish"),
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


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_and_no_function_is_too_long_to_read(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"
