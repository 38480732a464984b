"""Large JSON texts are parsed in pieces, with the same result as in one go."""

import json
from typing import Any

import pytest

from tasks._json import parse_json

VALUES: list[Any] = [
    {},
    [],
    [[], {}],
    {"a": {}, "b": []},
    [1, -2.5, True, None, 'a, b] } \\" é'],
    {"ids": ["1", "2"], "rows": [{"a": [1, [2, {"b": 3}]]}], 'a " : { b': {"c": [{}, [[]]]}},
    [[[[1], 2], 3], "x"],
    "text",
    3,
]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_value_is_read_back(value: Any, indent: int | None) -> None:
    assert parse_json(json.dumps(value, indent=indent), max_at_once=0) == value
    assert parse_json(f"\n {json.dumps(value, indent=indent, ensure_ascii=False)} \r\n", max_at_once=0) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "[", "{", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1] 2", '{"a"}', '{"a":}', '{"a" 1}', "{1: 2}",
     '{"a": 1,}', '{"a": 1]', "[1}", '{"a": [1}', "nothing", '["a]'],
)  # fmt: skip
def test_text_that_is_not_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"column|Expecting|Invalid|delimiter"):
        parse_json(text, max_at_once=0)
