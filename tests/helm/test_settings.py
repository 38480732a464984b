"""The settings of the chart are those of the server: same names, types and limits, and the server reads their texts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from service.settings import read_settings
from tests.helm.chart import Refused, render, settings
from tests.helm.server_schema import OWN_SETTINGS, SCHEMA, SETTINGS, camel_case, known, server_schema

EXAMPLES: Mapping[Any, Any] = {int: 3, float: 2.5, bool: True, str: "text", Path: "/a/path"}


def example_of(spec: Any) -> Any:
    if get_origin(spec.type) is Literal:
        return get_args(spec.type)[-1]
    if spec.type == int | Literal["auto"]:
        return "auto"
    if get_origin(spec.type) is tuple:
        return ["one", "two"]
    low, high = spec.metadata["min"], spec.metadata["max"]
    if get_origin(spec.type) is Mapping:
        return {"all": min(high, max(low, EXAMPLES[get_args(spec.type)[1]]))}
    number = EXAMPLES[spec.type]
    return number if low is None else min(high, max(low, number))


def test_the_schema_has_every_setting_with_its_type_limits_and_description() -> None:
    written = json.loads(SCHEMA.read_text())["properties"]["server"]["properties"]

    assert written == server_schema(), "run `python -m tests.helm.server_schema`"


def test_the_server_reads_every_setting_as_it_was_written_in_the_values() -> None:
    written = {name: example_of(spec) for name, spec in OWN_SETTINGS.items()}

    environment = settings(render({"server": {camel_case(name): value for name, value in written.items()}}))
    read = read_settings([], known(environment))

    for name, value in written.items():
        actual = getattr(read, name)
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, name


def test_large_and_small_numbers_are_written_without_exponents() -> None:
    values = {
        "server": {"maxBodyBytes": 20_000_000_000, "shadowSlowdown": 0.01, "hangSeconds": 1e3, "rescanSeconds": 1e-12}
    }

    environment = settings(render(values))

    assert environment["SEVENFOLD_MAX_BODY_BYTES"] == "20000000000"
    assert environment["SEVENFOLD_SHADOW_SLOWDOWN"] == "0.01"
    assert environment["SEVENFOLD_HANG_SECONDS"] == "1000"
    assert environment["SEVENFOLD_RESCAN_SECONDS"] == "0"


def test_every_variable_of_the_config_map_is_a_setting_of_the_server() -> None:
    values = {
        "auth": {"apiKeys": {"existingSecret": "keys"}, "adminToken": {"existingSecret": "token"}},
        "tls": {"existingSecret": "tls"},
        "corsOrigins": ["https://app.example.com"],
        "gpu": {"enabled": True},
    }

    environment = settings(render(values))

    assert {name.removeprefix("SEVENFOLD_").lower() for name in environment} <= SETTINGS.keys()
    read_settings([], environment)


@pytest.mark.parametrize("name", ["adminToken", "port", "models", "tlsKey"])
def test_a_setting_that_another_value_makes_is_refused_under_server(name: str) -> None:
    with pytest.raises(Refused, match=name):
        render({"server": {name: "text"}})
