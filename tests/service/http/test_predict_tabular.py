"""Predictions for table rows: errors name row and column; values that training never saw are answered with a notice."""

from collections.abc import Iterator

import pytest

from service.settings import Settings
from tests.model_folders import publish
from tests.service.conftest import Running, Start, running
from tests.tiny.tabular import HIRES, hires_graph

URL = "/v1/models/credit/predict"
GOOD = {"income": 50, "debt": 5.0, "job": "baker"}
BAD = {"income": 5, "debt": 40.0, "job": "clerk"}
JSON = {"content-type": "application/json"}


def test_rows_are_answered_in_order(server: Running) -> None:
    answer = server.client.post(URL, json={"rows": [GOOD, BAD, GOOD]})

    assert [row["label"] for row in answer.json()["predictions"]] == ["yes", "no", "yes"]
    first = answer.json()["predictions"][0]
    assert first["probability"] == first["probabilities"]["yes"] > 0.9
    assert answer.json()["notices"] == []


def test_more_rows_than_a_batch_get_the_same_answers_as_alone(server: Running) -> None:
    rows = [{"income": i, "debt": 5, "job": "baker"} for i in range(100)]

    joint = server.client.post(URL, json={"rows": rows}).json()["predictions"]

    alone = [server.client.post(URL, json={"rows": [row]}).json()["predictions"][0] for row in rows[::25]]
    assert joint[::25] == alone


def test_values_that_training_never_saw_are_answered_with_a_notice(server: Running) -> None:
    row = {"income": 500, "debt": None, "job": "astronaut", "sex": "Female"}

    answer = server.client.post(URL, json={"rows": [GOOD, row]})

    assert answer.status_code == 200
    assert answer.json()["notices"] == [
        "rows.1.income: 500 is outside the range seen in training (0 to 100).",
        "rows.1.job: 'astronaut' was not seen in training and counts as unknown.",
    ]


@pytest.mark.parametrize(
    ("row", "where", "reason"),
    [
        ('{"income": 50, "debt": 5}', "rows.0.job", "missing"),
        ('{"income": NaN, "debt": 5, "job": "baker"}', "rows.0.income", "not_finite"),
        ('{"income": 1e999, "debt": 5, "job": "baker"}', "rows.0.income", "not_finite"),
        ('{"income": "12,5", "debt": 5, "job": "baker"}', "rows.0.income", "wrong_type"),
        ('{"income": true, "debt": 5, "job": "baker"}', "rows.0.income", "wrong_type"),
        ('{"income": 50, "debt": 5, "job": 7}', "rows.0.job", "wrong_type"),
        ('{"income": 50, "debt": 5, "job": "baker", "age": 3}', "rows.0.age", "unknown_field"),
        ("7", "rows.0", "wrong_type"),
    ],
)
def test_an_invalid_value_is_named_by_row_and_column(server: Running, row: str, where: str, reason: str) -> None:
    answer = server.client.post(URL, content='{"rows": [' + row + "]}", headers=JSON)

    detail = answer.json()["error"]["details"][0]
    assert answer.status_code == 422
    assert (detail["where"], detail["reason"]) == (where, reason)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("age", "rows.0.age: there is no such column."),
        ("Debt", "rows.0.Debt: there is no such column. Did you mean 'debt'?"),
    ],
)
def test_an_error_is_a_sentence_with_one_full_stop(server: Running, name: str, message: str) -> None:
    answer = server.client.post(URL, json={"rows": [{**GOOD, name: 3}]})

    assert answer.json()["error"]["message"] == message


def test_no_rows_and_too_many_rows_get_distinct_errors(server: Running, start: Start) -> None:
    large_limit = start(max_body_bytes=200_000_000)

    no_rows = server.client.post(URL, json={"rows": []})
    too_many = server.client.post(URL, json={"rows": [GOOD] * 1001})
    a_million = large_limit.client.post(URL, json={"rows": [GOOD] * 1_000_000})

    assert (no_rows.status_code, no_rows.json()["error"]["details"][0]["reason"]) == (422, "empty")
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (413, "input_too_large")
    assert "1000 are accepted" in too_many.json()["error"]["message"]
    assert (a_million.status_code, a_million.json()["error"]["code"]) == (413, "input_too_large")


CSV = b"job;income;debt\r\nbaker;50;5,0\r\nclerk;5;40\r\n"


def test_a_csv_file_is_answered_like_its_rows_as_json(server: Running) -> None:
    from_json = server.client.post(URL, json={"rows": [GOOD, BAD]}).json()

    raw = server.client.post(URL, content=CSV, headers={"content-type": "text/csv"})
    form = server.client.post(URL, files={"rows": ("rows.csv", CSV, "text/csv")})

    assert (raw.status_code, form.status_code) == (200, 200), raw.text
    assert raw.json() == form.json()
    assert raw.json()["predictions"] == from_json["predictions"]
    assert raw.json()["notices"] == ["Commas in numbers were read as decimal commas: '5,0' as 5.0."]


def test_a_table_of_a_thousand_rows_is_answered_as_json_and_as_csv(server: Running) -> None:
    rows = [{"income": i % 100, "debt": 5.125, "job": "baker"} for i in range(1000)]
    csv = "income,debt,job\n" + "".join(f"{row['income']},{row['debt']},{row['job']}\n" for row in rows)

    from_json = server.client.post(URL, json={"rows": rows})
    from_csv = server.client.post(URL, content=csv, headers={"content-type": "text/csv"})

    assert (from_json.status_code, from_csv.status_code) == (200, 200), from_csv.text
    assert from_csv.json() == from_json.json()
    assert len(from_csv.json()["predictions"]) == 1000


def test_a_csv_file_with_an_unknown_column_is_rejected(server: Running) -> None:
    answer = server.client.post(URL, content=b"incom,debt,job\n50,5,baker", headers={"content-type": "text/csv"})

    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == (
        "There is no column 'incom'. Did you mean 'income'? The column 'income' is missing; add it, with blank cells "
        "if it is not known."
    )
    assert [detail["reason"] for detail in answer.json()["error"]["details"]] == ["unknown_field", "missing"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "foo": 1}, "rows.0.foo: there is no such column."),
        ({**GOOD, "debt": "1.243,56"}, "rows.0.debt: '1.243,56' is not a number; write 1243.56."),
        (
            {**GOOD, "job": 1067},
            "rows.0.job: 1067 is a number, and the column contains texts; write it in quotation marks, as in training.",
        ),
        (
            {"income": 50, "debts": 5, "job": "baker"},
            "rows.0.debts: there is no such column. Did you mean 'debt'? (and 1 more).",
        ),
    ],
)
def test_the_message_on_a_row_says_which_column_was_meant(
    server: Running, row: dict[str, object], message: str
) -> None:
    answer = server.client.post(URL, json={"rows": [row]})

    assert (answer.status_code, answer.json()["error"]["message"]) == (422, message)


def test_a_table_without_rows_is_told_to_send_one(server: Running) -> None:
    answers = [
        server.client.post(URL, json={"rows": []}),
        server.client.post(URL, content=b"income,debt,job\n", headers={"content-type": "text/csv"}),
    ]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert [answer.json()["error"]["message"] for answer in answers] == [
        "rows: there are no rows; send at least one.",
        "The table has no rows: only its first line, which names the columns.",
    ]


def test_a_row_of_half_a_million_fields_is_rejected_before_validation(start: Start) -> None:
    server = start()
    row = "{" + ",".join(f'"{i}":1' for i in range(500_000)) + "}"

    answer = server.client.post(URL, content='{"rows": [' + row + "]}", headers=JSON)

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "input_too_large")
    assert "JSON values" in answer.json()["error"]["message"]


def test_a_number_beyond_single_precision_is_accepted(server: Running) -> None:
    answer = server.client.post(URL, json={"rows": [GOOD | {"income": 1e300}]})

    assert answer.status_code == 200
    assert "1e+300 is outside the range seen in training" in answer.json()["notices"][0]


HIRES_URL = "/v1/models/hires/predict"
HOUR = {"when": "2012-06-01T08:00", "temp": 20, "weather": "clear"}


@pytest.fixture(scope="module")
def hires(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a regression model."""
    root = tmp_path_factory.mktemp("hires")
    publish(root, "hires", HIRES, hires_graph())
    with running(Settings(models=root)) as started:
        yield started


def test_a_regression_answer_has_an_interval(hires: Running) -> None:
    answer = hires.client.post(HIRES_URL, json={"rows": [HOUR, {**HOUR, "temp": None}]})

    assert answer.status_code == 200, answer.text
    first, second = answer.json()["predictions"]
    assert first["low"] < first["value"] < first["high"]
    assert second["value"] == first["value"] - 10
    assert (answer.json()["coverage"], answer.json()["notices"]) == (0.8, [])


def test_dates_outside_the_training_period_are_answered_with_a_notice(hires: Running) -> None:
    rows = [{**HOUR, "when": "2010-12-31T23:00"}, HOUR, {**HOUR, "when": "2013-01-01T00:00", "weather": "hail"}]

    answer = hires.client.post(HIRES_URL, json={"rows": rows})

    assert answer.status_code == 200
    assert answer.json()["notices"] == [
        "rows.0.when: 2010-12-31T23:00 is before the first date that training saw (2011-01-01T00:00).",
        "rows.2.when: 2013-01-01T00:00 is after the last date that training saw (2012-08-31T23:00).",
        "rows.2.weather: 'hail' was not seen in training and counts as unknown.",
    ]


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        ({"when": "2012-13-01T08:00"}, "rows.0.when", "malformed"),
        ({"when": "2012-02-30T08:00"}, "rows.0.when", "malformed"),
        ({"when": "1.6.2012"}, "rows.0.when", "malformed"),
        ({"when": "2012-06-01"}, "rows.0.when", "malformed"),
        ({"when": "2012-06-01T08:00+02:00"}, "rows.0.when", "malformed"),
        ({"when": "9999-12-31T23:59"}, "rows.0.when", "out_of_range"),
        ({"when": 1338537600}, "rows.0.when", "wrong_type"),
        ({"temp": "warm"}, "rows.0.temp", "wrong_type"),
        ({"rain": True}, "rows.0.rain", "unknown_field"),
    ],
)
def test_an_invalid_date_or_value_is_named(hires: Running, change: dict[str, object], where: str, reason: str) -> None:
    answer = hires.client.post(HIRES_URL, json={"rows": [HOUR | change]})

    detail = answer.json()["error"]["details"][0]
    assert (answer.status_code, detail["where"], detail["reason"]) == (422, where, reason)
    assert answer.json()["error"]["message"].endswith(".")


def test_a_null_date_is_accepted_and_a_missing_column_is_not(hires: Running) -> None:
    without = hires.client.post(HIRES_URL, json={"rows": [{"temp": 20, "weather": "clear"}]})
    missing = hires.client.post(HIRES_URL, json={"rows": [{**HOUR, "when": None}]})

    assert (without.status_code, without.json()["error"]["details"][0]["reason"]) == (422, "missing")
    assert missing.status_code == 200
