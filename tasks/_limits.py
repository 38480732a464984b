"""Limits on lists in requests, checked before pydantic validates each of their elements."""

from typing import Any

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from tasks.contract import Limits


def check_counts(values: Any, info: ValidationInfo, *, name: str, max_fields: int, at_least: int = 0) -> Any:
    """Count the objects of a list, and the fields of each, since validating too many of them would be slow.

    The number of objects is limited by the `rows` of the Limits in the validation context, but not to fewer than
    `at_least`. `name` is that of one object in messages. Returns `values` unchanged; raises PydanticCustomError
    `too_many`.
    """
    limits = info.context if isinstance(info.context, Limits) else Limits()
    limit = max(limits.rows, at_least)
    if isinstance(values, list) and len(values) > limit:
        message = "{count} {name}s were sent; at most {limit} are accepted in one request"
        raise PydanticCustomError("too_many", message, {"count": len(values), "name": name, "limit": limit})
    for i, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, dict) and len(value) > max_fields:
            message = "{name} {place} has {count} fields; at most {limit} are accepted"
            context = {"name": name, "place": i, "count": len(value), "limit": max_fields}
            raise PydanticCustomError("too_many", message, context)
    return values
