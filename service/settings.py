"""Settings of the server, read from flags and environment variables; immutable once read.

A flag takes precedence over the environment, and the environment over the default. Unknown names are errors that
suggest the closest known setting; they are never ignored.
"""

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_args, get_origin

from tasks.near_names import nearest_name

PREFIX = "SEVENFOLD_"
AUTO = "auto"
_MIN_DECODERS = 2
MAX_PROCESSES = 64
_OTHER_VARIABLES = ("SEVENFOLD_DATA", "SEVENFOLD_MIRROR", "SEVENFOLD_TOOLS")
"""Variables with the same prefix that belong to training and to the tests; the server ignores them. SEVENFOLD_API_KEY,
of `smoke`, is not among them: whoever sets it for a server expects that it protects the server."""
_SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""Names of the variables that Kubernetes sets in every pod of a namespace with a Service called `sevenfold`, or
`sevenfold-` and something (Kubernetes' documentation, Service: environment variables)."""
_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")


class InvalidSetting(ValueError):
    """A setting does not exist or has an invalid value."""


def _setting(default: Any, doc: str, *, min: float | None = None, max: float = 2**53, secret: bool = False) -> Any:
    metadata = {"doc": doc, "min": min, "max": max}
    return (
        field(default_factory=lambda: default, metadata=metadata)
        if default == {}
        else field(default=default, metadata=metadata, repr=not secret)
    )


@dataclass(frozen=True)
class Settings:
    """All settings, with their defaults. Raises InvalidSetting if they contradict each other."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 = all interfaces")
    port: int = _setting(8000, "port to listen on; 0 = any free port", min=0, max=65535)
    models: Path = _setting(Path("models"), "folder of models, laid out as NAME/VERSION/manifest.json")
    versions: int = _setting(1, "number of newest versions of each model to serve; 0 = all", min=0)
    only: tuple[str, ...] = _setting((), "serve only these models, as NAME,NAME,…")
    pin: Mapping[str, int] = _setting(
        {},
        "serve exactly this version of a model, whatever else is in its folder, as NAME=VERSION,…",
        min=1,
        max=999_999_999,
    )
    rescan_seconds: float = _setting(
        10.0,
        "interval between checks of the model folder for versions added or removed; 0 = check only at startup",
        min=0,
    )
    admin: bool = _setting(False, "allow clients to load, unload and promote versions")
    admin_token: str = _setting(
        "", "token that requests to load, unload and promote must send as 'Authorization: Bearer TOKEN'", secret=True
    )
    api_keys_file: Path | None = _setting(
        None,
        "file of API keys, one of which predictions and model pages then need; see 'python -m service new-key --help'",
    )
    admin_port: int = _setting(
        0, "port for health, metrics and changing versions, instead of the other port; 0 = the same", min=0, max=65535
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "origins whose pages may use the server from a browser, as https://HOST,…; * = all"
    )
    tls_cert: Path | None = _setting(None, "certificate chain (PEM) to serve HTTPS with, on both ports")
    tls_key: Path | None = _setting(None, "private key (PEM) of the certificate")
    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "device to run models on; 'cuda' fails at startup if CUDA is unavailable"
    )
    processes: int | Literal["auto"] = _setting(
        1,
        "server processes that share the port and divide cores and memory; auto = one per core, as far as memory "
        "allows, and one on a GPU",
        min=1,
        max=MAX_PROCESSES,
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = _setting(
        "auto",
        "precision to compute in, where a model has a variant of it; auto = int8 on CPUs that gain from it, fp16 on "
        "CUDA, else fp32",
    )
    max_precision_loss: float = _setting(
        0.5,
        "how much worse than fp32 a variant may be, in points of the model's main metric, measured when it was "
        "published",
        min=0,
        max=100,
    )
    backend: Literal["onnxruntime", "torchscript"] = _setting(
        "onnxruntime",
        "runtime of the models; 'torchscript' needs torch, and serves the programs in model.ts instead of model.onnx: "
        "only for models whose publisher you trust to run code",
    )
    threads: int = _setting(
        0, "CPU threads for an unbatched request; 0 = all cores (concurrent batches use one each)", min=0
    )
    workers: int = _setting(0, "threads that encode answers; 0 = one per core", min=0)
    decoders: int = _setting(
        0, "processes that decode uploads, besides half as many for slow ones; 0 = one per core, at least 2", min=0
    )
    decode_seconds: float = _setting(
        2.0,
        "processor time after which decoding a body is stopped; each megabyte of the body adds a tenth of that",
        min=0.1,
    )
    max_batch: int = _setting(0, "maximum batch size; 0 = measured during warm-up, at most 256", min=0)
    batches_at_once: int = _setting(
        0, "batches that a device runs concurrently; 0 = 2 on CUDA, 2 per core on a CPU", min=0
    )
    max_delay_ms: float = _setting(
        0.0, "how long a sample may wait for others to share its batch while the device is idle", min=0
    )
    max_queue: int = _setting(
        256, "maximum concurrent requests per model; further requests are rejected with 503", min=1
    )
    timeout_ms: float = _setting(
        30_000.0, "maximum time for a request; clients can set a shorter one with X-Request-Timeout-Ms", min=1
    )
    deadlines: Mapping[str, float] = _setting({}, "time limit and target response time per model, as NAME=MS,…", min=1)
    weights: Mapping[str, float] = _setting(
        {}, "scheduling weight per model, as NAME=WEIGHT,…; 2 halves the target response time", min=0.001
    )
    objective_ms: float = _setting(
        250.0, "latency objective, an exact edge of the buckets of the histograms of durations", min=1, max=30_000
    )
    shadow: Mapping[str, float] = _setting(
        {},
        "fraction of requests to mirror to a new version before it may replace the served one, as NAME=FRACTION,… "
        "(or all=FRACTION)",
        min=0,
        max=1,
    )
    shadow_requests: int = _setting(
        200, "mirrored requests after which a shadow version is promoted or rolled back", min=1, max=10_000
    )
    shadow_agreement: float = _setting(
        0.9, "minimum mean agreement of a shadow version's answers with those of the served one", min=0, max=1
    )
    shadow_slowdown: float = _setting(
        1.5, "maximum ratio of a shadow version's median processing time to that of the served one", min=0.01
    )
    shadow_errors: float = _setting(
        0.0, "maximum fraction of mirrored requests that a shadow version may fail", min=0, max=1
    )
    hang_seconds: float = _setting(
        10.0,
        "time after which a run is abandoned and liveness fails until the run returns; also the longest time that the "
        "event loop may be blocked; 0 = no limit",
        min=0,
    )
    memory_mb: float = _setting(
        0.0, "memory limit for all concurrent runs on a device; 0 = most of the memory free after loading", min=0
    )
    max_body_bytes: int = _setting(20_000_000, "maximum size of a request body", min=1)
    max_bodies_bytes: int = _setting(256_000_000, "maximum total size of all request bodies in memory", min=1)
    max_pixels: int = _setting(50_000_000, "maximum pixels of an input image; checked before decoding", min=1)
    max_answer_pixels: int = _setting(
        4_000_000,
        "maximum pixels of an image that a model generates (doubling width and height means four times the input)",
        min=1,
    )
    max_rows: int = _setting(1_000, "maximum rows per request", min=1)
    max_characters: int = _setting(100_000, "maximum characters of an input text", min=1)
    max_inputs: int = _setting(16, "maximum images or texts in one request", min=1)
    drain_seconds: float = _setting(
        0.0, "after SIGTERM, how long to keep accepting requests while /health/ready reports 503", min=0
    )
    grace_seconds: float = _setting(30.0, "after draining, how long to wait for accepted requests to finish", min=0)
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "minimum level of log messages")
    log_format: Literal["auto", "json", "text"] = _setting(
        "auto",
        "format of the log; auto = text on a terminal, JSON otherwise; json also prints no welcome text",
    )

    def __post_init__(self) -> None:
        if self.admin_port and self.admin_port == self.port:
            raise InvalidSetting("admin_port must differ from port; 0 = health and metrics are on the same port.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidSetting("HTTPS needs both --tls-cert and --tls-key.")
        if self.api_keys_file is not None and self.admin and not (self.admin_token or self.admin_port):
            raise InvalidSetting(
                "With --api-keys-file, --admin needs a token of its own, or clients without a key could change what is "
                "served: set SEVENFOLD_ADMIN_TOKEN, or --admin-port."
            )

    def worker_counts(self, cores: int) -> tuple[int, int, int]:
        """Return how many decoders, decoders for slow uploads, and threads that encode answers there are."""
        decoders = self.decoders or max(_MIN_DECODERS, cores)
        return decoders, max(1, decoders // 2), self.workers or cores


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from command-line arguments and environment variables. Raises InvalidSetting."""
    texts = _read_environment(environment) | _read_flags(arguments)
    specs = {spec.name: spec for spec in fields(Settings)}
    return Settings(**{name: _convert(specs[name], text) for name, text in texts.items()})


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    known = {PREFIX + spec.name.upper(): spec.name for spec in fields(Settings)}
    texts = {}
    ignored = {*_OTHER_VARIABLES, *find_service_links(environment)}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable not in ignored:
            if variable not in known:
                raise InvalidSetting(f"Unknown setting {variable}.{_suggestion(variable, known)}")
            texts[known[variable]] = text
    return texts


def find_service_links(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables that are no settings, but describe a Kubernetes Service whose name begins with `sevenfold`.

    One of them, SEVENFOLD_PORT, has the name of a setting, but an address as its value.
    """
    own = {PREFIX + spec.name.upper() for spec in fields(Settings)}
    return [
        variable
        for variable, text in environment.items()
        if _SERVICE_LINK.fullmatch(variable) and (variable not in own or _LINK_ADDRESS.fullmatch(text))
    ]


def _read_flags(arguments: Sequence[str]) -> dict[str, str]:
    parsed, unknown = flag_parser().parse_known_args(arguments)
    if unknown:
        flags = [_flag(spec) for spec in fields(Settings)]
        raise InvalidSetting(f"Unknown setting {unknown[0]}.{_suggestion(unknown[0].partition('=')[0], flags)}")
    return {name: text for name, text in vars(parsed).items() if text is not None}


def _flag(spec: Field[Any]) -> str:
    return "--" + spec.name.replace("_", "-")


def _suggestion(name: str, known: Iterable[str]) -> str:
    nearest = nearest_name(name, known, _bare)
    return " Run with --help to list all settings." if nearest is None else f" Did you mean {nearest}?"


def _bare(name: str) -> str:
    """Return a name without its prefix, which would make all names similar."""
    return name.removeprefix(PREFIX).lstrip("-")


class _FlagParser(argparse.ArgumentParser):
    """Raises InvalidSetting instead of printing a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InvalidSetting(f"{message[:1].upper()}{message[1:]}. Run with --help to list all settings.")


def flag_parser() -> argparse.ArgumentParser:
    """Return the command-line parser. It leaves values as text: they are converted as environment variables are."""
    parser = _FlagParser(
        prog="python -m service",
        description="Serve the models in a folder over HTTP.",
        epilog=f"Each flag can also be set by an environment variable (--max-batch as {PREFIX}MAX_BATCH). "
        "Flags take precedence. Commands instead of flags: doctor (what would keep the server from working), new-key "
        "(make an API key), import (a graph of another program), fetch (download models), smoke (one prediction of "
        "each model of a server); each has --help.",
        allow_abbrev=False,
    )
    for spec in fields(Settings):
        choices = f" ({', '.join(get_args(spec.type))})" if get_origin(spec.type) is Literal else ""
        help_text = f"{spec.metadata['doc']}{choices}; default: {_describe_default(spec)}"
        if spec.type is bool:  # The flag alone turns it on.
            parser.add_argument(_flag(spec), metavar="on|off", nargs="?", const="on", help=help_text)
        else:
            parser.add_argument(_flag(spec), metavar="VALUE", help=help_text)
    return parser


def _describe_default(spec: Field[Any]) -> Any:
    if spec.type is bool:
        return "on" if spec.default else "off"
    is_empty = get_origin(spec.type) is Mapping or spec.default in ("", (), None)
    return "none" if is_empty else spec.default


def _convert(spec: Field[Any], text: str) -> Any:
    kind: Any = _OPTIONAL_TYPES.get(spec.type, spec.type)
    if kind is bool:
        if text.lower() not in _SWITCH:
            raise InvalidSetting(f"{spec.name} must be on or off, not '{text}'.")
        return _SWITCH[text.lower()]
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InvalidSetting(f"{spec.name} must be one of {', '.join(get_args(kind))}, not '{text}'.")
        return text
    if kind is int and text == AUTO and AUTO in _words(spec):
        return AUTO
    return _convert_text(spec, text, kind)


def _words(spec: Field[Any]) -> tuple[Any, ...]:
    """Return the words that a setting takes instead of a number."""
    return tuple(word for kind in get_args(spec.type) if get_origin(kind) is Literal for word in get_args(kind))


def _convert_text(spec: Field[Any], text: str, kind: Any) -> Any:
    if kind in (str, Path):
        if not text:
            raise InvalidSetting(f"{spec.name} must not be empty.")
        return kind(text)
    if get_origin(kind) is tuple:
        return _convert_names(spec, text)
    if get_origin(kind) is Mapping:
        return _convert_mapping(spec, text)
    return _convert_number(spec, spec.name, text, kind)


def _convert_names(spec: Field[Any], text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise InvalidSetting(f"{spec.name} must be NAME,NAME,… with unique names, not '{text}'.")
    return names


def _convert_mapping(spec: Field[Any], text: str) -> Mapping[str, float]:
    kind: Any = get_args(spec.type)[1]
    pairs = [item.partition("=") for item in text.split(",")]
    if any(not (key and sign) for key, sign, _ in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise InvalidSetting(f"{spec.name} must be NAME=NUMBER,NAME=NUMBER,… with unique names, not '{text}'.")
    return MappingProxyType({key: _convert_number(spec, f"{spec.name}: {key}", value, kind) for key, _, value in pairs})


def _convert_number(spec: Field[Any], label: str, text: str, kind: Any) -> Any:
    pattern, noun = _NUMBERS[kind]
    if not pattern.fullmatch(text):
        raise InvalidSetting(f"{label} must be {noun}, not '{text}'.")
    if not spec.metadata["min"] <= kind(text) <= spec.metadata["max"]:
        raise InvalidSetting(f"{label} must be between {spec.metadata['min']} and {spec.metadata['max']}, not {text}.")
    return kind(text)


_OPTIONAL_TYPES: Mapping[Any, Any] = {Path | None: Path, int | Literal["auto"]: int}
"""The type of a value that is given, for settings that may have none, or a word."""
_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}

# Stricter than Python's own parsing: 1_0, nan and inf are typing errors here.
_NUMBERS = {
    int: (re.compile(r"[+-]?\d{1,18}"), "an integer"),
    float: (re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?"), "a number"),
}
