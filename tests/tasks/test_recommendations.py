"""Recommendations as a task: what a request means, what is left out and why, and every wrong thing that can be sent."""

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
from tests.model_folders import runner
from tests.tiny.recommendations import FILMS, TASK, graph

RUN = runner(graph())
FILM = st.sampled_from(FILMS.ids[:6])
RATING = st.fixed_dictionaries({"item": FILM}, optional={"rating": st.sampled_from([0.5, 2.0, 3.5, 4.0, 5.0])})


def asked(body: dict[str, Any], task: Recommendations = TASK) -> RecommendationsAnswer:
    answer = task.answer(RUN, body)
    assert isinstance(answer, RecommendationsAnswer)
    return answer


def ids(body: dict[str, Any], task: Recommendations = TASK) -> list[str]:
    return [item.id for item in asked(body, task).items]


def test_what_a_user_has_seen_is_left_out_and_each_item_says_why_it_is_there() -> None:
    answer = asked({"user": "ann", "k": 3})

    assert [item.title for item in answer.items] == ["Ronin (1998)", "Toy Story (1995)", "Alien (1979)"]
    assert answer.items[0].reason == "Because you liked Heat (1995)."
    assert answer.items[0].details == {"genres": "Crime"}
    assert answer.items[2].reason == "Popular with everybody."
    assert answer.fallback is None


@given(st.sampled_from(["ann", "bob", "cec"]))
def test_a_user_and_what_the_user_rated_get_the_same_answer(user: str) -> None:
    numbers, levels = TASK.users[user]
    assert TASK.scale is not None
    ratings = [
        {"item": FILMS.ids[number - 1], "rating": TASK.scale.rating(level)}
        for number, level in zip(numbers, levels, strict=True)
    ]

    assert asked({"user": user}) == asked({"ratings": ratings})


@given(st.lists(RATING, max_size=9), st.lists(FILM, max_size=6), st.integers(1, 100))
def test_what_is_rated_or_excluded_never_comes_back(ratings: list[dict[str, Any]], exclude: list[str], k: int) -> None:
    found = ids({"ratings": ratings, "exclude": exclude, "k": k})

    left = set(FILMS.ids[:6]) - set(exclude) - {rating["item"] for rating in ratings}
    assert len(found) == len(set(found)) == min(k, len(left))
    assert set(found) <= left


@given(st.lists(RATING, min_size=1, max_size=8), st.integers(1, 600))
def test_what_fills_a_history_up_changes_no_answer(ratings: list[dict[str, Any]], length: int) -> None:
    request = TASK.parse({"ratings": ratings}, Limits())
    samples = TASK.preprocess(TASK.decode(request, Limits()))
    longer = {**samples.arrays}
    for name in ("history", "levels"):
        longer[name] = np.zeros((1, length + 8), np.int64)
        longer[name][:, :8] = samples.arrays[name]

    short, long = RUN(samples.arrays), RUN(longer)
    assert TASK.postprocess(short, samples, request) == TASK.postprocess(long, samples, request)


def test_where_nothing_is_known_what_is_popular_is_recommended_and_the_answer_says_so() -> None:
    answer = asked({"ratings": [], "k": 2})

    assert answer.fallback == "popularity"
    assert [item.title for item in answer.items] == ["Heat (1995)", "Toy Story (1995)"]
    assert {item.reason for item in answer.items} == {"Popular with everybody; nothing is known of your taste yet."}


def test_who_liked_nothing_is_not_told_that_they_did() -> None:
    assert {item.reason for item in asked({"user": "cec"}).items} == {"Often liked by people who rated the same items."}


def test_who_has_seen_everything_gets_an_empty_list_and_a_sentence() -> None:
    answer = asked({"user": "bob"})

    assert answer.items == []
    assert answer.notices == ["Nothing is left to recommend: all items are seen, excluded or withdrawn."]
    assert len(ids({"user": "bob", "include_seen": True})) == 6


def test_new_ratings_are_added_to_what_is_known_of_a_user() -> None:
    answer = asked({"user": "ann", "ratings": [{"item": 6, "rating": 5}], "k": 2})

    assert [item.reason for item in answer.items] == [
        "Because you liked Heat (1995).",
        "Because you liked Aliens (1986).",
    ]


def test_of_an_item_that_is_rated_twice_the_last_rating_counts_and_the_answer_says_so() -> None:
    twice = asked({"ratings": [{"item": "5", "rating": 5}, {"item": "5", "rating": 1}]})

    assert twice.items == asked({"ratings": [{"item": "5", "rating": 1}]}).items
    assert twice.notices == ["ratings.1.item: '5' was sent before; the last rating counts."]


def test_unknown_items_are_named_and_left_out_where_others_remain() -> None:
    answer = asked({"ratings": [{"item": "1"}, {"item": "x"}, {"item": "7"}], "exclude": ["y"]})

    assert [item.id for item in answer.items] == ids({"ratings": [{"item": "1"}]})
    assert answer.notices == [
        "exclude.0: there is no item 'y'.",
        "ratings.1.item: There is no item 'x'; it was left out.",
        "ratings.2.item: 'New' is new: the network has not learnt of it; it was left out.",
    ]


def test_similar_items_are_those_and_not_the_item_itself() -> None:
    answer = asked({"similar_to": 1, "k": 100})

    assert "1" not in [item.id for item in answer.items]
    assert {item.reason for item in answer.items} == {"Similar to Heat (1995)."}


def test_a_withdrawn_item_is_never_recommended_but_still_tells_of_a_taste() -> None:
    task = replace(TASK, items=replace(FILMS, withdrawn=("2", "1", "7")))

    assert "2" not in ids({"ratings": [{"item": "1"}], "k": 100}, task)
    assert "1" not in ids({"ratings": [], "include_seen": True}, task)
    assert ids({"ratings": [{"item": "2", "rating": 5}], "k": 1}, task) == ids({"ratings": []}, task)[:1]


def test_of_a_long_history_the_latest_items_are_read_and_all_are_left_out() -> None:
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
    assert samples.context.notices == (f"Of {count} ratings the latest {MAX_HISTORY} were used.",)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nobody": ({}, "Send `user`, `ratings`"),
    "an unknown user": ({"user": "zed"}, "'zed' is not known to this model; send the user's ratings as `ratings`"),
    "only unknown items": (
        {"ratings": [{"item": "x"}, {"item": "y"}]},
        "None of the rated items can be used. There is no item 'x'",
    ),
    "like an unknown item": ({"similar_to": "x"}, "There is no item 'x'"),
    "like a new item": ({"similar_to": "7"}, "'New' is new"),
    "two questions at once": ({"user": "ann", "similar_to": "1"}, "but not both"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_answered_gets_a_sentence_that_says_what_to_send(kind: str) -> None:
    body, sentence = WRONG[kind]

    with pytest.raises(InvalidInput, match=sentence) as caught:
        asked(body)

    assert caught.value.problems[0].where


FIELDS = {str(i): 1 for i in range(1_000)}
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "a rating above the scale": ({"ratings": [{"item": "1", "rating": 7}]}, "ratings.0.rating"),
    "a rating below the scale": ({"ratings": [{"item": "1", "rating": 0}]}, "ratings.0.rating"),
    "a rating that is text": ({"ratings": [{"item": "1", "rating": "5"}]}, "ratings.0.rating"),
    "a rating that is true": ({"ratings": [{"item": "1", "rating": True}]}, "ratings.0.rating"),
    "a rating that is no number": ({"ratings": [{"item": "1", "rating": float("nan")}]}, "ratings.0.rating"),
    "a rating of nothing": ({"ratings": [{"rating": 5}]}, "ratings.0.item"),
    "a misspelt field": ({"ratings": [{"item": "1", "stars": 5}]}, "ratings.0.stars"),
    "ratings that are no list": ({"ratings": {"1": 5}}, "ratings"),
    "more ratings than are accepted": ({"ratings": [{"item": "1"}] * 1001}, "ratings"),
    "more exclusions than are accepted": ({"user": "ann", "exclude": ["1"] * 1001}, "exclude"),
    "an empty user": ({"user": ""}, "user"),
    "a user that is true": ({"user": True}, "user"),
    "an endless id": ({"user": "x" * 201}, "user"),
    "an endless id of a rating": ({"ratings": [{"item": "x" * 201}]}, "ratings.0.item"),
    "an endless number": ({"user": 10**200}, "user"),
    "a rating of endless fields": ({"ratings": [{"item": "1"}, {"item": "1", **FIELDS}]}, "ratings"),
    "an exclusion of endless fields": ({"user": "ann", "exclude": [FIELDS]}, "exclude"),
    "none": ({"user": "ann", "k": 0}, "k"),
    "more than a hundred": ({"user": "ann", "k": 101}, "k"),
    "half an item": ({"user": "ann", "k": 1.5}, "k"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_is_named_by_its_place(kind: str) -> None:
    body, where = MALFORMED[kind]

    with pytest.raises(ValidationError) as caught:
        asked(body)

    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == where


def test_the_fields_of_a_rating_are_counted_before_each_unknown_one_becomes_an_error() -> None:
    with pytest.raises(ValidationError) as caught:
        asked({"ratings": [{"item": "1"}, {"item": "1", **FIELDS}]})

    (error,) = caught.value.errors()
    assert (error["type"], error["msg"]) == ("too_many", "item 1 has 1001 fields; at most 10 are accepted")


@pytest.mark.parametrize(("sent", "count", "kind"), [("x" * 201, 201, "too_long"), ("", 0, "too_short")])
def test_an_id_of_a_wrong_length_is_told_so_in_words(sent: str, count: int, kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        asked({"user": sent})

    (error,) = caught.value.errors()
    assert (error["type"], error["msg"]) == (kind, f"an id has 1 to 200 characters; this one has {count}")


def test_an_id_of_200_characters_is_one() -> None:
    with pytest.raises(InvalidInput, match="is not known to this model"):
        asked({"user": "x" * 200})


def test_ids_may_be_whole_numbers() -> None:
    assert asked({"ratings": [{"item": 1, "rating": 5}]}) == asked({"ratings": [{"item": "1", "rating": 5.0}]})


def test_where_nobody_rated_a_rating_is_accepted_and_not_used() -> None:
    task = replace(TASK, scale=None, users={})

    assert ids({"ratings": [{"item": "1", "rating": -40}]}, task) == ids({"ratings": [{"item": "1"}]}, task)


def test_outputs_that_are_no_items_are_told_from_an_answer() -> None:
    request = TASK.parse({"user": "ann"}, Limits())
    samples = TASK.preprocess(TASK.decode(request, Limits()))
    outputs = dict(RUN(samples.arrays))

    for broken in ({"scores": outputs["scores"] * np.nan}, {"items": outputs["items"] + 90}):
        with pytest.raises(InvalidOutput):
            TASK.postprocess({**outputs, **broken}, samples, request)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"known": 9}, "the network knows 9 items and the table has 7"),
        ({"users": {"zed": ((7,), (1,))}}, "history of user 'zed'"),
        ({"users": {"zed": ((1,), (11,))}}, "history of user 'zed'"),
        ({"users": {"zed": ((1, 2), (1,))}}, "history of user 'zed'"),
    ],
)
def test_files_that_do_not_fit_each_other_are_no_task(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_task(Recommendations, parameters_of(replace_unchecked(change)), files_of(replace_unchecked(change)))


def replace_unchecked(change: dict[str, Any]) -> Recommendations:
    task = replace(TASK)
    for name, value in change.items():
        object.__setattr__(task, name, value)
    return task


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"titles": ("one",)}, "7 ids and 1 titles"),
        ({"ids": ("1",) * 7}, "two items have the same id"),
        ({"withdrawn": ("9",)}, "withdrawn item '9' is not in the table"),
    ],
)
def test_a_table_whose_columns_do_not_fit_is_none(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(FILMS, **change)


@given(st.integers(1, 20), st.data())
def test_levels_and_ratings_are_each_others_inverse(levels: int, data: st.DataObject) -> None:
    scale = Scale(low=-1.0, high=3.5, levels=levels + 1, liked=2.0)
    level = data.draw(st.integers(1, levels + 1))

    assert scale.level(scale.rating(level)) == level
    assert scale.rating(scale.liked_from) >= 2.0 or scale.liked_from == scale.levels


@given(st.integers(2, 20), st.floats(0, 100), st.floats(0, 100))
def test_a_ratings_level_is_liked_just_where_the_rating_is(levels: int, liked: float, rating: float) -> None:
    scale = Scale(low=0.0, high=100.0, levels=levels, liked=liked)
    level = scale.level(rating)

    assert 1 <= level <= levels
    assert (level >= scale.liked_from) == (rating >= liked - 1e-9)


@given(st.integers(0, 2_000))
def test_the_bucket_is_the_smallest_that_holds_the_history(length: int) -> None:
    assert bucket_length(length) == min([each for each in LENGTH_BUCKETS if each >= length], default=MAX_HISTORY)
