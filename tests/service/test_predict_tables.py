"""Rows go in; what is wrong with a value is told by row and column, what is merely new is answered and noted."""

import pytest

from tests.service.conftest import Running, Start

URL = "/v1/models/credit/predict"
GOOD = {"income": 50, "debt": 5.0, "job": "baker"}
BAD = {"income": 5, "debt": 40.0, "job": "clerk"}
JSON = {"content-type": "application/json"}


def test_each_row_gets_its_class_in_order(server: Running) -> None:
    answer = server.client.post(URL, json={"rows": [GOOD, BAD, GOOD]})

    assert [row["label"] for row in answer.json()["predictions"]] == ["yes", "no", "yes"]
    first = answer.json()["predictions"][0]
    assert first["probability"] == first["probabilities"]["yes"] > 0.9
    assert answer.json()["notices"] == []


def test_more_rows_than_a_batch_are_answered_as_if_each_were_alone(server: Running) -> None:
    rows = [{"income": i, "debt": 5, "job": "baker"} for i in range(100)]

    together = server.client.post(URL, json={"rows": rows}).json()["predictions"]

    alone = [server.client.post(URL, json={"rows": [row]}).json()["predictions"][0] for row in rows[::25]]
    assert together[::25] == alone


def test_what_training_never_saw_is_answered_and_noted(server: Running) -> None:
    row = {"income": 500, "debt": None, "job": "astronaut", "sex": "Female"}

    answer = server.client.post(URL, json={"rows": [GOOD, row]})

    assert answer.status_code == 200
    assert answer.json()["notices"] == [
        "rows.1.income: 500 is outside what training saw (0 to 100).",
        "rows.1.job: 'astronaut' was not seen in training and counts as unknown.",
    ]


@pytest.mark.parametrize(
    ("row", "where", "reason"),
    [
        ('{"income": 50, "debt": 5}', "rows.0.job", "missing"),
        ('{"income": NaN, "debt": 5, "job": "baker"}', "rows.0.income", "not_finite"),
        ('{"income": 1e999, "debt": 5, "job": "baker"}', "rows.0.income", "not_finite"),
        ('{"income": "50", "debt": 5, "job": "baker"}', "rows.0.income", "wrong_type"),
        ('{"income": true, "debt": 5, "job": "baker"}', "rows.0.income", "wrong_type"),
        ('{"income": 50, "debt": 5, "job": 7}', "rows.0.job", "wrong_type"),
        ('{"income": 50, "debt": 5, "job": "baker", "age": 3}', "rows.0.age", "unknown_field"),
        ("7", "rows.0", "wrong_type"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_column(server: Running, row: str, where: str, reason: str) -> None:
    answer = server.client.post(URL, content='{"rows": [' + row + "]}", headers=JSON)

    detail = answer.json()["error"]["details"][0]
    assert answer.status_code == 422
    assert (detail["where"], detail["reason"]) == (where, reason)


def test_no_rows_and_too_many_rows_are_told_apart(server: Running, start: Start) -> None:
    generous = start(max_body_bytes=200_000_000)

    none = server.client.post(URL, json={"rows": []})
    many = server.client.post(URL, json={"rows": [GOOD] * 1001})
    a_million = generous.client.post(URL, json={"rows": [GOOD] * 1_000_000})

    assert (none.status_code, none.json()["error"]["details"][0]["reason"]) == (422, "empty")
    assert (many.status_code, many.json()["error"]["code"]) == (413, "input_too_large")
    assert "1000 are accepted" in many.json()["error"]["message"]
    assert (a_million.status_code, a_million.json()["error"]["code"]) == (413, "input_too_large")


def test_a_table_is_no_file(server: Running) -> None:
    answer = server.client.post(URL, content=b"income,debt", headers={"content-type": "text/csv"})

    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_a_row_of_half_a_million_fields_is_refused_before_they_are_looked_at(start: Start) -> None:
    server = start()
    row = "{" + ",".join(f'"{i}":1' for i in range(500_000)) + "}"

    answer = server.client.post(URL, content='{"rows": [' + row + "]}", headers=JSON)

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "input_too_large")
    assert "row 0 has 500000 fields" in answer.json()["error"]["message"]


def test_a_number_beyond_single_precision_is_a_large_number(server: Running) -> None:
    answer = server.client.post(URL, json={"rows": [GOOD | {"income": 1e300}]})

    assert answer.status_code == 200
    assert "1e+300 is outside what training saw" in answer.json()["notices"][0]
