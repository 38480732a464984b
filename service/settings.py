"""What an operator may set, by flag or by environment variable; frozen once read.

A flag wins over the environment, the environment over the default. Every name is checked: a setting that does not
exist is an error with the nearest one that does, never ignored.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

PREFIX = "SEVENFOLD_"
_OF_THE_TRAINER = ("SEVENFOLD_DATA", "SEVENFOLD_MIRROR")
"""Variables with this prefix that are not the service's, and that it leaves alone."""


class InvalidSetting(ValueError):
    """A setting that does not exist, or whose value is none it can have."""


def _setting(default: Any, doc: str, *, least: float | None = None, most: float = 2**53) -> Any:
    metadata = {"doc": doc, "least": least, "most": most}
    return (
        field(default_factory=lambda: default, metadata=metadata)
        if default == {}
        else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True)
class Settings:
    """All settings, with their defaults."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 for every interface")
    port: int = _setting(8000, "port to listen on; 0 for any free one", least=0, most=65535)
    models: Path = _setting(Path("models"), "folder of the models: NAME/VERSION/manifest.json")
    versions: int = _setting(1, "newest versions of each model to serve; 0 for all", least=0)
    rescan_seconds: float = _setting(
        10.0, "how often to look for new versions in the folder of the models; 0 for only at the start", least=0
    )
    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "where the graphs run; 'cuda' is an error where it cannot be had"
    )
    threads: int = _setting(
        0, "on a CPU, threads of a request that is alone; 0 for one a core (in company each batch has one)", least=0
    )
    workers: int = _setting(0, "threads that decode requests and encode answers; 0 for one a core", least=0)
    max_batch: int = _setting(
        0, "samples in a batch, at most; 0 for what warm-up finds to be of use, up to 256", least=0
    )
    batches_at_once: int = _setting(
        0, "batches that a device is given at a time; 0 for 2 on CUDA, and 2 a core on a CPU", least=0
    )
    max_delay_ms: float = _setting(0.0, "how long a sample may wait for company while the device is free", least=0)
    max_queue: int = _setting(256, "requests under way for one model, at most; more are refused with 503", least=1)
    timeout_ms: float = _setting(
        30_000.0, "time for a request; a client asks for less with X-Request-Timeout-Ms", least=1
    )
    deadlines: Mapping[str, float] = _setting(
        {}, "time for a request to a model in ms, NAME=MS,…: its limit, and when it is due", least=1
    )
    weights: Mapping[str, float] = _setting(
        {}, "NAME=WEIGHT,…: 2 halves the time in which a model's requests are due", least=0.001
    )
    shadow: Mapping[str, float] = _setting(
        {},
        "NAME=SHARE,… (or all=SHARE): new versions are first asked this share of the requests, in the shadow of the "
        "one that answers",
        least=0,
        most=1,
    )
    shadow_requests: int = _setting(
        200, "requests after which a version in the shadow is promoted or given up", least=1, most=10_000
    )
    shadow_agreement: float = _setting(
        0.9, "how far its answers must agree with those that were given, on average", least=0, most=1
    )
    shadow_slowdown: float = _setting(1.5, "how many times as long its median answer may take", least=0.01)
    shadow_errors: float = _setting(0.0, "share of these requests that it may fail", least=0, most=1)
    hang_seconds: float = _setting(
        10.0, "a run that takes longer is given up, and liveness fails until it comes back; 0 for never", least=0
    )
    memory_mb: float = _setting(
        0.0, "memory that all runs together may take on a device; 0 for most of what is free after loading", least=0
    )
    max_body_bytes: int = _setting(10_000_000, "bytes in the body of a request, at most", least=1)
    max_bodies_bytes: int = _setting(256_000_000, "bytes of all bodies under way together, at most", least=1)
    max_pixels: int = _setting(25_000_000, "pixels in a picture, at most; checked before decoding", least=1)
    max_answer_pixels: int = _setting(
        4_000_000, "pixels in a picture that a network makes (twice as wide and high: four times those sent)", least=1
    )
    max_rows: int = _setting(1_000, "rows in a request, at most", least=1)
    max_characters: int = _setting(100_000, "characters of a text in a request, at most", least=1)
    drain_seconds: float = _setting(
        0.0, "after SIGTERM, how long to go on accepting while /health/ready says no", least=0
    )
    grace_seconds: float = _setting(30.0, "after that, how long to finish what was accepted", least=0)
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least level that is logged")


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that flags and environment make. Raises InvalidSetting."""
    given = _from_environment(environment) | _from_flags(arguments)
    values = {name: _convert(name, text) for name, text in given.items()}
    return Settings(**values)


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    known = {PREFIX + spec.name.upper(): spec.name for spec in fields(Settings)}
    found = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable not in _OF_THE_TRAINER:
            if variable not in known:
                raise InvalidSetting(f"There is no setting {variable}.{_nearest(variable, known)}")
            found[known[variable]] = text
    return found


def _from_flags(arguments: Sequence[str]) -> dict[str, str]:
    parser = flag_parser()
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = ["--" + spec.name.replace("_", "-") for spec in fields(Settings)]
        raise InvalidSetting(f"There is no setting {unknown[0]}.{_nearest(unknown[0].partition('=')[0], flags)}")
    return {name: text for name, text in vars(known).items() if text is not None}


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else " --help lists them all."


def flag_parser() -> argparse.ArgumentParser:
    """The command line, for `--help`; values are converted afterwards, as those of the environment are."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves the models of a folder over HTTP.",
        epilog=f"Each flag is also an environment variable: --max-batch is {PREFIX}MAX_BATCH. The flag wins.",
        allow_abbrev=False,
    )
    for spec in fields(Settings):
        flag = "--" + spec.name.replace("_", "-")
        choices = f" ({', '.join(get_args(spec.type))})" if get_origin(spec.type) is Literal else ""
        default = "none" if get_origin(spec.type) is Mapping else spec.default
        parser.add_argument(flag, metavar="VALUE", help=f"{spec.metadata['doc']}{choices}; default: {default}")
    return parser


def _convert(name: str, text: str) -> Any:
    (spec,) = (spec for spec in fields(Settings) if spec.name == name)
    kind: Any = spec.type
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InvalidSetting(f"{name} is one of {', '.join(get_args(kind))}, not '{text}'.")
        return text
    if kind in (str, Path):
        if not text:
            raise InvalidSetting(f"{name} is empty.")
        return kind(text)
    if get_origin(kind) is Mapping:
        return _convert_pairs(name, text, spec)
    return _convert_number(name, text, kind, spec)


def _convert_pairs(name: str, text: str, spec: Any) -> Mapping[str, float]:
    pairs = [item.partition("=") for item in text.split(",")]
    if any(not (key and sign) for key, sign, _ in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise InvalidSetting(f"{name} is NAME=NUMBER,NAME=NUMBER, each name once, not '{text}'.")
    return MappingProxyType({key: _convert_number(f"{name}: {key}", value, float, spec) for key, _, value in pairs})


def _convert_number(name: str, text: str, kind: Any, spec: Any) -> Any:
    if not _NUMBERS[kind].fullmatch(text):
        raise InvalidSetting(f"{name} is a number ({kind.__name__}), not '{text}'.")
    least, most = spec.metadata["least"], spec.metadata["most"]
    if not least <= kind(text) <= most:
        raise InvalidSetting(f"{name} is {least} or more, and at most {most}, not {text}.")
    return kind(text)


# Not all that Python reads as a number: 1_0, nan and inf are slips.
_NUMBERS = {int: re.compile(r"[+-]?\d{1,18}"), float: re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?")}
