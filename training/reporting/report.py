"""The report of a run, one HTML page that needs no other file, and the card of a published model."""

import base64
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch

from tasks.manifest import Manifest
from training.core.results import Evaluation, RunResult
from training.engine.runtime import Runtime
from training.publishing.export import TOLERANCE, Parity
from training.reporting import plots
from training.reporting.run_folder import Plan


@dataclass(frozen=True)
class ReportContext:
    """All that a report and a card are written from."""

    plan: Plan
    outcome: RunResult
    findings: Evaluation
    data_summary: str
    hub_tag: str
    runtime: Runtime
    trained_with: str

    def _context(self) -> dict[str, Any]:
        chosen = {**asdict(self.plan.settings), **asdict(self.plan.options)}
        return {
            "recipe": self.plan.recipe,
            "plan": self.plan,
            "outcome": self.outcome,
            "findings": self.findings,
            "described": self.data_summary,
            "runtime": self.runtime,
            "command": self.plan.command,
            "epochs": len(self.outcome.histories[0]),
            "settings": {name: _shown(value) for name, value in chosen.items()},
        }

    def report(self) -> str:
        """The HTML page."""
        curves = plots.draw_training_curves(self.outcome.histories)
        return render_template("report.html.jinja", {**self._context(), "curves": curves})

    def card(self, manifest: Manifest, parity: Parity) -> str:
        """The model's README, Markdown with the front matter that model hubs read."""
        more = {
            "manifest": manifest,
            "parity": parity,
            "tolerance": TOLERANCE,
            "torch": torch.__version__,
            "pipeline": self.hub_tag,
            "trained_with": self.trained_with,
        }
        return render_template("card.md.jinja", {**self._context(), **more}) + "\n"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_template(template: str, context: Mapping[str, Any]) -> str:
    """A template of training/templates/ with what it names; every name must be there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["png"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return environment.get_template(template).render(context)


def reproduction_command(name: str, chosen: Mapping[str, Any], defaults: Mapping[str, Any], data: Path | None) -> str:
    """The command that makes the same model: the options that differ from their defaults, and no others."""
    words = ["python", "-m", "training", name]
    if data:
        words += ["--data", str(data)]
    for option, value in chosen.items():
        if value == defaults[option]:
            continue
        flag = "--" + option.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join([*words, "--publish"])
