"""Reading ratings and items, and splitting them."""

import polars as pl
import pytest

from tests.training.learners.shop import write_shop
from training.core.errors import CannotTrain
from training.learners.recommendations.interactions import ColumnNames, encode_features, read_ratings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def ratings(folder):
    return read_ratings(folder, ColumnNames(), liked=4.0, seed=0)


def test_ratings_are_read_with_titles_of_items_and_a_scale(ratings):
    assert (len(ratings.users), ratings.known, len(ratings.table)) == (40, 24, 25)
    assert ratings.table.titles[:2] == ("Even 0", "Odd 1")
    assert ratings.table.ids[-1] == "999"
    assert ratings.table.details["genres"][:2] == ("a|b", "c")
    assert (ratings.scale.low, ratings.scale.high, ratings.scale.levels, ratings.scale.liked_from) == (1, 5, 2, 2)
    assert ratings.ordered


def test_last_two_liked_items_of_each_user_are_held_out_and_end_the_training_items(folder, ratings):
    frame = pl.read_csv(folder / "ratings.csv").sort("userId", "timestamp")
    for user in ratings.users:
        rows = frame.filter(pl.col("userId") == int(user.name))
        liked = rows.filter(pl.col("rating") >= 4)["movieId"].to_list()
        ids = [int(ratings.table.ids[row]) for row in user.items]

        assert ids == rows["movieId"].to_list()
        assert (user.held_out is None) == (len(liked) < 3)
        if user.held_out:
            assert [ids[index] for index in user.held_out] == liked[-2:]
            assert user.train_end == user.held_out[0]


def test_without_ratings_every_item_is_liked(tmp_path):
    ratings = read_ratings(write_shop(tmp_path, ratings=False), ColumnNames(), liked=0.0, seed=0)

    assert ratings.scale is None
    assert all(user.liked.all() and not user.levels.any() for user in ratings.users)


def test_liked_items_are_exact_if_there_are_more_ratings_than_levels(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating,time\n" + "".join(f"{i % 2},{i},{i},{i}\n" for i in range(101)))

    ratings = read_ratings(path, ColumnNames(), liked=80.0, seed=0)

    liked = [int(ratings.table.ids[row]) for user in ratings.users for row in user.items[user.liked]]
    assert ratings.scale.levels == 20
    assert sorted(liked) == list(range(80, 101))
    for user in ratings.users:
        levels = [ratings.scale.level(float(ratings.table.ids[row])) for row in user.items]
        assert levels == user.levels.tolist()
        assert (user.levels >= ratings.scale.liked_from).tolist() == user.liked.tolist()


def test_dates_are_times_and_the_later_of_two_ratings_of_an_item_counts(tmp_path):
    path = tmp_path / "events.csv"
    rows = ["ann,tea,2024-01-03,1", "ann,tea,2024-01-09,5", "ann,jam,2024-01-05,5", "ann,oil,2024-01-04,5"]
    rows += ["bob,tea,2024-01-01,5", "bob,jam,2024-01-02,5", "bob,oil,2024-01-03,5"]
    path.write_text("who,Product ID,date,stars\n" + "\n".join(rows) + "\n")

    ratings = read_ratings(path, ColumnNames(user="who"), liked=0.0, seed=0)

    assert [[ratings.table.ids[row] for row in user.items] for user in ratings.users] == [
        ["oil", "jam", "tea"],
        ["tea", "jam", "oil"],
    ]
    assert ratings.warnings == ("1 ratings were left out: the same user rated the item later.",)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a,b\n1,2\n",
            {},
            "no column with a usual name for the user; specify it with --user-column. Its columns are a, b",
        ),
        ("user,b\n1,2\n", {}, "no column with a usual name for the item"),
        ("user,item\n1,2\n", {"user": "who"}, "no column 'who'"),
        ("user,item\n1,a\n1,b\n1,c\n", {}, "contains only one user"),
        ("user,item\n1,a\n2,a\n3,a\n", {}, "contains only one item"),
        ("user,item\n1,a\n1,b\n2,a\n2,b\n", {}, "No user of .* likes 3 items or more"),
        ("user,item,rating\n1,a,good\n1,b,5\n2,a,4\n", {}, "ratings must be numbers, but one is 'good'"),
        ("user,item,rating\n1,a,1\n1,b,5\n2,a,4\n", {"liked": 6.0}, "the highest rating in .* is 5"),
        ("user,item,time\n1,a,yesterday\n1,b,2\n2,a,2\n", {}, "'yesterday' cannot be read as a time"),
        ("user,item,time\n1,a,1\n1,b,\n2,a,2\n", {}, "1 rows have no time"),
        ("user,item\n,a\n1,\n", {}, "contains no row with a user and an item"),
        ("", {}, "is empty"),
    ],
)
def test_unusable_ratings_get_a_one_line_error(tmp_path, text, options, message):
    path = tmp_path / "ratings.csv"
    path.write_text(text)
    names = ColumnNames(user=options.get("user", ""))

    with pytest.raises(CannotTrain, match=message) as caught:
        read_ratings(path, names, liked=options.get("liked", 0.0), seed=0)

    assert "\n" not in str(caught.value)


def test_folder_without_ratings_is_an_error_that_says_what_is_missing(tmp_path):
    with pytest.raises(CannotTrain, match=r"name it ratings\.csv"):
        read_ratings(tmp_path, ColumnNames(), liked=0.0, seed=0)


def test_features_are_fractions_of_a_row():
    names, fractions = encode_features(["b|a", "", "a"])

    assert names == ("a", "b")
    assert fractions.tolist() == [[0.5, 0.5], [0, 0], [1, 0]]
