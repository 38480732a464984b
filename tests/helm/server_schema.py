"""`python -m tests.helm.server_schema`: write the server's settings into helm/values.schema.json.

Run it after a setting has been added or changed; a test fails until then.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin

from service.settings import Settings
from tests.helm.chart import CHART

MADE_BY_OTHER_VALUES = {
    "host": "always all interfaces",
    "port": "containerPorts.http",
    "admin_port": "containerPorts.admin",
    "models": "models.mountPath",
    "admin": "auth.adminToken",
    "admin_token": "auth.adminToken",
    "api_keys_file": "auth.apiKeys",
    "cors_origins": "corsOrigins",
    "tls_cert": "tls",
    "tls_key": "tls",
    "drain_seconds": "lifecycle.drainSeconds",
    "grace_seconds": "lifecycle.graceSeconds",
}
"""Settings that have no value of their own in `server`, and where they come from."""
SETTINGS = {spec.name: spec for spec in fields(Settings)}
OWN_SETTINGS = {name: spec for name, spec in SETTINGS.items() if name not in MADE_BY_OTHER_VALUES}
SCHEMA = CHART / "values.schema.json"
_TYPES = {bool: "boolean", int: "integer", float: "number"}


def camel_case(name: str) -> str:
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def setting_schema(spec: Field[Any]) -> dict[str, Any]:
    """Return the schema of a setting."""
    kind: Any = spec.type
    about = {"description": spec.metadata["doc"]}
    if get_origin(kind) is Literal:
        return about | {"type": "string", "enum": list(get_args(kind))}
    if kind == int | Literal["auto"]:
        return about | {"oneOf": [_limited(spec, int), {"type": "string", "enum": ["auto"]}]}
    if get_origin(kind) is tuple:
        return about | {"type": "array", "items": {"type": "string", "pattern": "^[^,\\s]+$"}, "uniqueItems": True}
    if get_origin(kind) is Mapping:
        return about | {"type": "object", "additionalProperties": _limited(spec, get_args(kind)[1])}
    return about | _limited(spec, kind)


def _limited(spec: Field[Any], kind: type) -> dict[str, Any]:
    limits = {"minimum": spec.metadata["min"], "maximum": spec.metadata["max"]}
    return {"type": _TYPES.get(kind, "string")} | {
        name: limit for name, limit in limits.items() if limit is not None and limit < 2**53
    }


def server_schema() -> dict[str, Any]:
    """Return the schemas of all settings that `server` has."""
    return {camel_case(name): setting_schema(spec) for name, spec in OWN_SETTINGS.items()}


def known(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are settings of the server."""
    return {name: text for name, text in environment.items() if name.removeprefix("SEVENFOLD_").lower() in SETTINGS}


def main() -> None:
    """Replace the settings in the file."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["server"]["properties"] = server_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
