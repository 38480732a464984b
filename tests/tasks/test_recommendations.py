"""Recommendations: requests, notices, reasons and invalid input."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks._items import LENGTH_BUCKETS, MAX_HISTORY, NO_RATING, ItemTable, Scale, bucket_length
from tasks.contract import InvalidInput, InvalidOutput, Limits, build_task, files_of, parameters_of
from tasks.recommendations import Recommendations, RecommendationsAnswer
from tests.hostile_texts import hostile_ratings
from tests.model_folders import runner
from tests.tiny.recommendations import FILMS, TASK, graph

RUN = runner(graph())
FILM = st.sampled_from(FILMS.ids[:6])
RATING = st.fixed_dictionaries({"item": FILM}, optional={"rating": st.sampled_from([0.5, 2.0, 3.5, 4.0, 5.0])})


def predict(body: dict[str, Any], task: Recommendations = TASK) -> RecommendationsAnswer:
    answer = task.answer(RUN, body)
    assert isinstance(answer, RecommendationsAnswer)
    return answer


def ids(body: dict[str, Any], task: Recommendations = TASK) -> list[str]:
    return [item.id for item in predict(body, task).items]


def test_seen_items_are_excluded_and_every_item_has_a_reason() -> None:
    answer = predict({"user": "ann", "k": 3})

    assert [item.title for item in answer.items] == ["Ronin (1998)", "Toy Story (1995)", "Alien (1979)"]
    assert answer.items[0].reason == "Because you liked Heat (1995)."
    assert answer.items[0].details == {"genres": "Crime"}
    assert answer.items[2].reason == "Popular with everybody."
    assert answer.fallback is None


@given(st.sampled_from(["ann", "bob", "cec"]))
def test_user_and_the_same_ratings_get_the_same_answer(user: str) -> None:
    numbers, levels = TASK.users[user]
    assert TASK.scale is not None
    ratings = [
        {"item": FILMS.ids[number - 1], "rating": TASK.scale.rating(level)}
        for number, level in zip(numbers, levels, strict=True)
    ]

    assert predict({"user": user}) == predict({"ratings": ratings})


@given(st.lists(RATING, max_size=9), st.lists(FILM, max_size=6), st.integers(1, 100))
def test_rated_and_excluded_items_are_never_recommended(
    ratings: list[dict[str, Any]], exclude: list[str], k: int
) -> None:
    recommended = ids({"ratings": ratings, "exclude": exclude, "k": k})

    remaining = set(FILMS.ids[:6]) - set(exclude) - {rating["item"] for rating in ratings}
    assert len(recommended) == len(set(recommended)) == min(k, len(remaining))
    assert set(recommended) <= remaining


@given(st.lists(RATING, min_size=1, max_size=8), st.integers(1, 600))
def test_padding_a_history_does_not_change_the_answer(ratings: list[dict[str, Any]], length: int) -> None:
    request = TASK.parse({"ratings": ratings}, Limits())
    samples = TASK.preprocess(TASK.decode(request, Limits()))
    longer = {**samples.arrays}
    for name in ("history", "levels"):
        longer[name] = np.zeros((1, length + 8), np.int64)
        longer[name][:, :8] = samples.arrays[name]

    short, long = RUN(samples.arrays), RUN(longer)
    assert TASK.postprocess(short, samples, request) == TASK.postprocess(long, samples, request)


def test_empty_ratings_return_popular_items_with_a_fallback_flag() -> None:
    answer = predict({"ratings": [], "k": 2})

    assert answer.fallback == "popularity"
    assert [item.title for item in answer.items] == ["Heat (1995)", "Toy Story (1995)"]
    assert {item.reason for item in answer.items} == {"Popular with everybody; nothing is known of your taste yet."}


def test_user_who_liked_nothing_gets_a_neutral_reason() -> None:
    assert {item.reason for item in predict({"user": "cec"}).items} == {
        "Often liked by people who rated the same items."
    }


def test_user_who_has_seen_everything_gets_an_empty_list_and_a_notice() -> None:
    answer = predict({"user": "bob"})

    assert answer.items == []
    assert answer.notices == ["No items are left to recommend: all are seen, excluded or withdrawn."]
    assert len(ids({"user": "bob", "include_seen": True})) == 6


def test_ratings_in_the_request_are_added_to_the_known_history() -> None:
    answer = predict({"user": "ann", "ratings": [{"item": 6, "rating": 5}], "k": 2})

    assert [item.reason for item in answer.items] == [
        "Because you liked Heat (1995).",
        "Because you liked Aliens (1986).",
    ]


def test_last_rating_of_an_item_counts_and_a_notice_says_so() -> None:
    twice = predict({"ratings": [{"item": "5", "rating": 5}, {"item": "5", "rating": 1}]})

    assert twice.items == predict({"ratings": [{"item": "5", "rating": 1}]}).items
    assert twice.notices == ["ratings.1.item: '5' was sent more than once; the last rating counts."]


def test_unknown_items_are_left_out_with_a_notice_if_others_remain() -> None:
    answer = predict({"ratings": [{"item": "1"}, {"item": "x"}, {"item": "7"}], "exclude": ["y"]})

    assert [item.id for item in answer.items] == ids({"ratings": [{"item": "1"}]})
    assert answer.notices == [
        "exclude.0: there is no item 'y'.",
        "ratings.1.item: There is no item 'x'; it was left out.",
        "ratings.2.item: 'New' was added after training, so the model cannot use it; it was left out.",
    ]


def test_similar_items_do_not_include_the_item_itself() -> None:
    answer = predict({"similar_to": 1, "k": 100})

    assert "1" not in [item.id for item in answer.items]
    assert {item.reason for item in answer.items} == {"Similar to Heat (1995)."}


def test_withdrawn_item_is_never_recommended_but_counts_in_a_history() -> None:
    task = replace(TASK, items=replace(FILMS, withdrawn=("2", "1", "7")))

    assert "2" not in ids({"ratings": [{"item": "1"}], "k": 100}, task)
    assert "1" not in ids({"ratings": [], "include_seen": True}, task)
    assert ids({"ratings": [{"item": "2", "rating": 5}], "k": 1}, task) == ids({"ratings": []}, task)[:1]


def test_long_history_is_truncated_to_the_latest_but_fully_excluded() -> None:
    count = MAX_HISTORY + 100
    names = tuple(f"film {i}" for i in range(count + 1))
    task = Recommendations(
        known=count + 1,
        scale=None,
        ordered=True,
        items=ItemTable(names, names, (1,) * (count + 1)),
        users={"all": (tuple(range(1, count + 1)), (NO_RATING,) * count)},
    )
    request = task.parse({"user": "all"}, Limits())

    samples = task.preprocess(task.decode(request, Limits()))
    assert samples.arrays["history"][0].tolist() == list(range(101, count + 1))
    assert np.flatnonzero(samples.arrays["candidates"][0]).tolist() == [count]
    assert samples.context.notices == (f"Only the latest {MAX_HISTORY} of {count} ratings were used.",)


UNANSWERABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no user": ({}, "Send `user`, `ratings`"),
    "an unknown user": ({"user": "zed"}, "'zed' is not known to this model; send the user's ratings as `ratings`"),
    "only unknown items": (
        {"ratings": [{"item": "x"}, {"item": "y"}]},
        "None of the rated items can be used. There is no item 'x'",
    ),
    "similar to an unknown item": ({"similar_to": "x"}, "There is no item 'x'"),
    "similar to a new item": ({"similar_to": "7"}, "'New' was added after training"),
    "user and similar_to": ({"user": "ann", "similar_to": "1"}, "but not both"),
}


@pytest.mark.parametrize("kind", UNANSWERABLE)
def test_unanswerable_request_is_rejected_with_advice(kind: str) -> None:
    body, message = UNANSWERABLE[kind]

    with pytest.raises(InvalidInput, match=message) as caught:
        predict(body)

    assert caught.value.problems[0].where


FIELDS = {str(i): 1 for i in range(1_000)}
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "a rating above the scale": ({"ratings": [{"item": "1", "rating": 7}]}, "ratings.0.rating"),
    "a rating below the scale": ({"ratings": [{"item": "1", "rating": 0}]}, "ratings.0.rating"),
    "a rating that is text": ({"ratings": [{"item": "1", "rating": "5"}]}, "ratings.0.rating"),
    "a rating that is true": ({"ratings": [{"item": "1", "rating": True}]}, "ratings.0.rating"),
    "a rating that is NaN": ({"ratings": [{"item": "1", "rating": float("nan")}]}, "ratings.0.rating"),
    "a rating without an item": ({"ratings": [{"rating": 5}]}, "ratings.0.item"),
    "a misspelt field": ({"ratings": [{"item": "1", "stars": 5}]}, "ratings.0.stars"),
    "ratings that are not a list": ({"ratings": {"1": 5}}, "ratings"),
    "more ratings than are accepted": ({"ratings": [{"item": "1"}] * 1001}, "ratings"),
    "more exclusions than are accepted": ({"user": "ann", "exclude": ["1"] * 1001}, "exclude"),
    "an empty user": ({"user": ""}, "user"),
    "a user that is true": ({"user": True}, "user"),
    "a too long id": ({"user": "x" * 201}, "user"),
    "a too long id of a rating": ({"ratings": [{"item": "x" * 201}]}, "ratings.0.item"),
    "a too long number": ({"user": 10**200}, "user"),
    "a rating with too many fields": ({"ratings": [{"item": "1"}, {"item": "1", **FIELDS}]}, "ratings"),
    "an exclusion with too many fields": ({"user": "ann", "exclude": [FIELDS]}, "exclude"),
    "k of 0": ({"user": "ann", "k": 0}, "k"),
    "k of more than 100": ({"user": "ann", "k": 101}, "k"),
    "k that is not an integer": ({"user": "ann", "k": 1.5}, "k"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_validation_error_has_the_location(kind: str) -> None:
    body, location = MALFORMED[kind]

    with pytest.raises(ValidationError) as caught:
        predict(body)

    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == location


def test_fields_of_a_rating_are_counted_before_validation() -> None:
    with pytest.raises(ValidationError) as caught:
        predict({"ratings": [{"item": "1"}, {"item": "1", **FIELDS}]})

    (error,) = caught.value.errors()
    assert (error["type"], error["msg"]) == ("too_many", "item 1 has 1001 fields; at most 10 are accepted")


def test_as_many_ratings_as_the_largest_user_has_are_accepted() -> None:
    longest = max(len(numbers) for numbers, _ in TASK.users.values())
    ratings = [{"item": "1", "rating": 5}] * longest

    TASK.parse({"ratings": ratings, "exclude": ["1"] * longest}, Limits(rows=1))

    with pytest.raises(ValidationError, match=f"at most {longest} are accepted"):
        TASK.parse({"ratings": [*ratings, ratings[0]]}, Limits(rows=1))


def test_json_of_the_largest_request_is_within_its_limit_of_values() -> None:
    body = {"ratings": [{"item": "one, two", "rating": 5}] * 1000, "exclude": ["three, four"] * 1000}

    assert sum(map(json.dumps(body).count, ",[{")) <= TASK.max_json_values(Limits())


@pytest.mark.parametrize("name", hostile_ratings("1"))
def test_hostile_ratings_are_answered_or_rejected_with_few_problems(name: str) -> None:
    try:
        problems = len(predict(hostile_ratings("1")[name]).notices)
    except ValidationError as error:
        problems = error.error_count()
    except InvalidInput as error:
        problems = len(error.problems)

    assert problems <= 20


@pytest.mark.parametrize(("sent", "count", "kind"), [("x" * 201, 201, "too_long"), ("", 0, "too_short")])
def test_error_states_the_length_of_an_invalid_id(sent: str, count: int, kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        predict({"user": sent})

    (error,) = caught.value.errors()
    assert (error["type"], error["msg"]) == (kind, f"an id has 1 to 200 characters; this one has {count}")


def test_id_of_200_characters_is_valid() -> None:
    with pytest.raises(InvalidInput, match="is not known to this model"):
        predict({"user": "x" * 200})


def test_ids_may_be_integers() -> None:
    assert predict({"ratings": [{"item": 1, "rating": 5}]}) == predict({"ratings": [{"item": "1", "rating": 5.0}]})


def test_ratings_are_ignored_without_a_scale() -> None:
    task = replace(TASK, scale=None, users={})

    assert ids({"ratings": [{"item": "1", "rating": -40}]}, task) == ids({"ratings": [{"item": "1"}]}, task)


def test_invalid_outputs_raise_invalid_output() -> None:
    request = TASK.parse({"user": "ann"}, Limits())
    samples = TASK.preprocess(TASK.decode(request, Limits()))
    outputs = dict(RUN(samples.arrays))

    for broken in ({"scores": outputs["scores"] * np.nan}, {"items": outputs["items"] + 90}):
        with pytest.raises(InvalidOutput):
            TASK.postprocess({**outputs, **broken}, samples, request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known": 9}, "the network knows 9 items and the table has 7"),
        ({"users": {"zed": ((7,), (1,))}}, "history of user 'zed'"),
        ({"users": {"zed": ((1,), (11,))}}, "history of user 'zed'"),
        ({"users": {"zed": ((1, 2), (1,))}}, "history of user 'zed'"),
    ],
)
def test_inconsistent_files_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(Recommendations, parameters_of(replace_unchecked(change)), files_of(replace_unchecked(change)))


def replace_unchecked(change: dict[str, Any]) -> Recommendations:
    task = replace(TASK)
    for name, value in change.items():
        object.__setattr__(task, name, value)
    return task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titles": ("one",)}, "7 ids and 1 titles"),
        ({"ids": ("1",) * 7}, "two items have the same id"),
        ({"withdrawn": ("9",)}, "withdrawn item '9' is not in the table"),
    ],
)
def test_inconsistent_item_table_is_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FILMS, **change)


@given(st.integers(1, 20), st.data())
def test_level_inverts_rating(levels: int, data: st.DataObject) -> None:
    scale = Scale(low=-1.0, high=3.5, levels=levels + 1, liked=2.0)
    level = data.draw(st.integers(1, levels + 1))

    assert scale.level(scale.rating(level)) == level
    assert scale.rating(scale.liked_from) >= 2.0 or scale.liked_from == scale.levels


@given(st.integers(2, 20), st.floats(0, 100), st.floats(0, 100))
def test_level_counts_as_liked_exactly_if_the_rating_does(levels: int, liked: float, rating: float) -> None:
    scale = Scale(low=0.0, high=100.0, levels=levels, liked=liked)
    level = scale.level(rating)

    assert 1 <= level <= levels
    assert (level >= scale.liked_from) == (rating >= liked - 1e-9)


@given(st.integers(0, 2_000))
def test_bucket_is_the_smallest_that_holds_the_history(length: int) -> None:
    assert bucket_length(length) == min([bucket for bucket in LENGTH_BUCKETS if bucket >= length], default=MAX_HISTORY)
