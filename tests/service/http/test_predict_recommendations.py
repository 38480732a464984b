"""Recommendations: known users, ratings in the request, similar items, and errors for invalid requests."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.model_folders import publish
from tests.service.conftest import Running, running
from tests.tiny.recommendations import FILMS, TASK, graph

URL = "/v1/models/films/predict"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root: Path = tmp_path_factory.mktemp("films")
    publish(root, "films", TASK, graph())
    table = replace(FILMS, titles=("Heat", *FILMS.titles[1:]), withdrawn=("2",))
    publish(root, "films", replace(TASK, items=table), graph(), version=2)
    with running(Settings(models=root, versions=2)) as started:
        yield started


def titles(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["title"] for item in answer.json()["items"]]


def test_a_user_gets_unseen_items_with_reasons(films: Running) -> None:
    answer = films.client.post("/v1/models/films/versions/1/predict", json={"user": "ann", "k": 2})

    assert titles(answer) == ["Ronin (1998)", "Toy Story (1995)"]
    assert answer.json()["items"][0]["reason"] == "Because you liked Heat (1995)."


def test_a_new_item_table_corrects_titles_and_withdraws_items(films: Running) -> None:
    answer = films.client.post(URL, json={"user": "ann", "k": 100})

    assert answer.json()["version"] == "2"
    assert "Ronin (1998)" not in titles(answer)
    similar = films.client.post(URL, json={"similar_to": "1", "k": 1}).json()
    assert similar["items"][0]["reason"] == "Similar to Heat."


def test_no_ratings_and_no_unseen_items_are_answered(films: Running) -> None:
    no_ratings = films.client.post(URL, json={"ratings": []})
    all_seen = films.client.post(URL, json={"user": "bob"})

    assert no_ratings.json()["fallback"] == "popularity"
    assert no_ratings.json()["items"][0]["reason"].endswith("nothing is known of your taste yet.")
    assert (titles(all_seen), len(all_seen.json()["notices"])) == ([], 1)


@pytest.mark.parametrize(
    ("body", "status", "where", "reason"),
    [
        ({"user": "zed"}, 422, "user", "unknown"),
        ({}, 422, "user", "malformed"),
        ({"ratings": [{"item": "x"}]}, 422, "ratings.0.item", "unknown"),
        ({"ratings": [{"item": "1", "rating": 5.5}]}, 422, "ratings.0.rating", "out_of_range"),
        ({"ratings": [{"item": "1", "rating": "good"}]}, 422, "ratings.0.rating", "wrong_type"),
        ({"ratings": [{"item": "1"}] * 1001}, 413, "ratings", "too_many"),
        ({"user": "ann", "k": 0}, 422, "k", "out_of_range"),
        ({"user": "ann", "exclud": []}, 422, "exclud", "unknown_field"),
    ],
)
def test_an_invalid_request_is_rejected_with_place_and_reason(
    films: Running, body: dict[str, Any], status: int, where: str, reason: str
) -> None:
    answer = films.client.post(URL, json=body)

    detail = answer.json()["error"]["details"][0]
    assert (answer.status_code, detail["where"], detail["reason"]) == (status, where, reason)


def test_concurrent_histories_of_all_lengths_get_the_same_answers_as_alone(films: Running) -> None:
    bodies = [{"ratings": [{"item": str(1 + (i + j) % 6), "rating": 5} for j in range(i % 7)]} for i in range(28)]
    bodies += [{"ratings": [{"item": "3", "rating": 4}] * 40}]
    alone = [films.client.post(URL, json=body).json() for body in bodies]

    with ThreadPoolExecutor(16) as threads:
        concurrent = list(threads.map(lambda body: films.client.post(URL, json=body).json(), bodies))

    assert concurrent == alone


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"film": "1"},
            "film: there is no such field. The fields are user, ratings, similar_to, k, exclude, include_seen, "
            "timeout_ms, priority.",
        ),
        ({"similarto": "1"}, "similarto: there is no such field. Did you mean 'similar_to'?"),
        (
            {"ratings": [{"film": "1"}]},
            "ratings.0.film: there is no such field. The fields are item, rating (and 1 more).",
        ),
    ],
)
def test_an_unknown_field_is_answered_with_those_that_exist(films: Running, body: dict[str, Any], message: str) -> None:
    answer = films.client.post(URL, json=body)

    assert (answer.status_code, answer.json()["error"]["message"]) == (422, message)
