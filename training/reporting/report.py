"""The report of a run, a self-contained HTML page, and the card of a published model."""

import base64
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch

from tasks.manifest import Manifest
from training.core.results import Evaluation, RunResult, Table
from training.engine.runtime import Runtime
from training.publishing.export import TOLERANCE, Parity
from training.reporting import plots
from training.reporting.run_folder import Plan

_NO_TEXT = re.compile(r"\b(to|dB|nan|inf)\b|(?<=\d)e(?=[+-]?\d)")
"""Letters that may occur in a number: of an interval, a unit, a special value or an exponent."""

_NO_ROWS = "This table has no rows for this data."
_NO_FAILURES = "The evaluation found none on the validation data; other data may show some."


@dataclass(frozen=True)
class ReportContext:
    """The values from which a report and a card are written.

    Attributes:
        trained_with: the code version that started the run.
    """

    plan: Plan
    result: RunResult
    evaluation: Evaluation
    data_summary: str
    hub_tag: str
    runtime: Runtime
    trained_with: str

    def _context(self) -> dict[str, Any]:
        values = {**asdict(self.plan.settings), **asdict(self.plan.options)}
        return {
            "recipe": self.plan.recipe,
            "plan": self.plan,
            "result": self.result,
            "evaluation": self.evaluation,
            "data_summary": self.data_summary,
            "runtime": self.runtime,
            "command": self.plan.command,
            "epochs": len(self.result.histories[0]),
            "settings": {name: _format_value(value) for name, value in values.items()},
        }

    def report(self) -> str:
        """Return the HTML page."""
        curves = plots.draw_training_curves(self.result.histories)
        return render_template("report.html.jinja", {**self._context(), "curves": curves})

    def card(self, manifest: Manifest, parity: Parity) -> str:
        """Return the model's README: Markdown with the front matter that model hubs read."""
        context = {
            **self._context(),
            "manifest": manifest,
            "parity": parity,
            "tolerance": TOLERANCE,
            "torch": torch.__version__,
            "pipeline": self.hub_tag,
            "trained_with": self.trained_with,
        }
        return render_template("card.md.jinja", context) + "\n"


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_template(name: str, context: Mapping[str, Any]) -> str:
    """Render a template of training/reporting/templates/; raises UndefinedError where the context lacks a name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["text_columns"] = text_columns
    environment.filters["markdown"] = markdown_table
    environment.filters["duration"] = format_duration
    environment.filters["count"] = format_count
    environment.globals.update(no_rows=_NO_ROWS, no_failures=_NO_FAILURES)
    environment.filters["png"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return environment.get_template(name).render(context)


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, with its note; a table without rows is only its note, which says why."""
    if not table.rows:
        return (table.note or _NO_ROWS) + "\n"
    lines = [_markdown_row(table.header), "|" + "---|" * len(table.header), *map(_markdown_row, table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a table; a label may contain a vertical bar or a line break."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def format_duration(minutes: float) -> str:
    """Format a duration such that a short one is not 0.0 minutes."""
    seconds = minutes * 60
    if seconds < 1:
        return "less than a second"
    return format_count(round(seconds), "second") if seconds < 60 else f"{minutes:.1f} minutes"


def format_count(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 epoch` and `3 epochs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def text_columns(table: Table) -> list[bool]:
    """Return for each column whether it contains text and is to be aligned left, as the first one always is."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    return [i == 0 or any(map(_is_text, column)) for i, column in enumerate(columns)]


def _is_text(cell: str) -> bool:
    return any(character.isalpha() for character in _NO_TEXT.sub("", cell))


def _without_folders(text: str) -> str:
    """Return the name of the file or folder if the text is the path of one."""
    is_path = any(separator in text for separator in (os.sep, os.altsep) if separator) and os.path.exists(text)
    return Path(text).absolute().name if is_path else text


def reproduction_command(name: str, values: Mapping[str, Any], defaults: Mapping[str, Any], data: Path | None) -> str:
    """Return the command that trains the same model, with the options that differ from their defaults.

    The command is published: of files and folders of this machine, it contains only the names.
    """
    words = ["python", "-m", "training", name]
    if data:
        words += ["--data", data.absolute().name or "DATA"]
    for option, value in values.items():
        if value == defaults[option]:
            continue
        flag = "--" + option.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            text = ",".join(value) if isinstance(value, tuple) else _without_folders(str(value))
            # A value that begins with a dash would be read as the name of an option.
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join([*words, "--publish"])
