"""Helm, 3 or 4: the commands that a user types, with what they print."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.api import Object

_TIMEOUT_S = 180
WAIT = ("--wait", "--timeout", "90s")


class HelmError(Exception):
    """Helm refused, or failed."""


@dataclass(frozen=True)
class Rendered:
    """A release that was rendered: the objects that it consists of, and those of its hooks."""

    objects: Sequence[Object]
    hooks: Sequence[Object] = field(default=())


@dataclass(frozen=True)
class Helm:
    """One version of Helm and the cluster that it talks to.

    Attributes:
        home: a folder for its cache and configuration, so that a user's own are not read.
    """

    program: Path
    kubeconfig: Path
    chart: Path
    home: Path

    def run(self, *arguments: str | Path) -> str:
        """Return what the command prints. Raises HelmError."""
        homes = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        environment = os.environ | homes | {"KUBECONFIG": str(self.kubeconfig), "HELM_NO_PLUGINS": "1"}
        command = [str(self.program), *(str(argument) for argument in arguments)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise HelmError(f"`helm {arguments[0]}` did not end within {_TIMEOUT_S} s.") from error
        if done.returncode:
            raise HelmError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def version(self) -> str:
        """Return the version, as v3.18.0."""
        return self.run("version", "--template", "{{.Version}}").strip()

    def dry_run(self, release: str, namespace: str, *values: str | Path) -> Rendered:
        """Render a release, with the cluster's own kinds and version."""
        text = self.run(
            "install", release, self.chart, "--namespace", namespace, "--dry-run=server", "--output=json", *values
        )
        answer = json.loads(text)
        hooks = [document for hook in answer.get("hooks") or [] for document in documents(hook["manifest"])]
        return Rendered(documents(answer["manifest"]), hooks)

    def install(self, release: str, namespace: str, *values: str | Path) -> None:
        """Install a release, and wait until it is available."""
        self.run("install", release, self.chart, "--namespace", namespace, *WAIT, *values)

    def upgrade(self, release: str, namespace: str, *values: str | Path) -> None:
        """Upgrade a release, and wait until it is available."""
        self.run("upgrade", release, self.chart, "--namespace", namespace, *WAIT, *values)

    def rollback(self, release: str, namespace: str, revision: int) -> None:
        """Return a release to a revision, and wait until it is available."""
        self.run("rollback", release, str(revision), "--namespace", namespace, *WAIT)

    def uninstall(self, release: str, namespace: str) -> None:
        """Uninstall a release, and wait until its objects are gone."""
        self.run("uninstall", release, "--namespace", namespace, *WAIT)


def documents(text: str) -> list[Object]:
    """Return the objects in YAML, without empty documents."""
    found: list[Any] = list(yaml.safe_load_all(text))
    return [document for document in found if document]
