"""Reading ratings and items, and splitting them."""

import polars as pl
import pytest

from tests.training.learners.shop import write_shop
from training.core.errors import CannotTrain
from training.learners.recommendations.interactions import ColumnNames, TableFormat, encode_features, read_ratings


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
        ("user,item,time\n1,a,1/2/2020\n1,b,2/2/2020\n", {}, "times contains dates like '1/2/2020'.*--dayfirst"),
        ("user,item\n1.01463E+20,a\n1.01463E+20,b\n", {}, r"were rounded by a spreadsheet \('1.01463E\+20'\)"),
        ("user,item,user\n1,a,1\n", {}, "several columns 'user'"),
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


def write_ratings(tmp_path, user=str, moment=str, rating=lambda k: 1 + k % 5, separator=","):
    """Twelve users rate six items each, in turn."""
    lines = [["user", "item", "rating", "time"]]
    lines += [[user(u), f"i{(u + k) % 9}", str(rating(k)), moment(k)] for u in range(12) for k in range(6)]
    path = tmp_path / "ratings.csv"
    path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return path


def read(path, form=TableFormat()):  # noqa: B008
    return read_ratings(path, ColumnNames(), form, liked=0.0, seed=0)


@pytest.mark.parametrize(
    "user",
    [
        lambda u: f"1014633501899620{u:02}774",
        lambda u: f"00{u}",
        lambda u: f"{10 + u}E5",
        lambda u: str(9 * 10**15 + u),
    ],
    ids=["21 digits", "leading zeros", "exponents", "16 digits"],
)
def test_ids_are_never_rounded(tmp_path, user):
    assert {one.name for one in read(write_ratings(tmp_path, user)).users} == {user(u) for u in range(12)}


def test_ids_that_a_program_wrote_as_floats_are_whole_numbers(tmp_path):
    users = read(write_ratings(tmp_path, lambda u: f"{u}.0")).users
    pl.DataFrame({"user": [float(i % 3) for i in range(12)], "item": [f"i{i // 3}" for i in range(12)]}).write_parquet(
        tmp_path / "ratings.parquet"
    )

    assert {one.name for one in users} == {str(u) for u in range(12)}
    assert [one.name for one in read(tmp_path / "ratings.parquet").users] == ["0", "1", "2"]


def test_ids_that_were_rounded_to_floats_are_refused(tmp_path):
    pl.DataFrame({"user": [1.5e18, 2e18], "item": ["a", "b"]}).write_parquet(tmp_path / "ratings.parquet")

    with pytest.raises(CannotTrain, match="ids in column 'user' are stored as floating-point numbers"):
        read(tmp_path / "ratings.parquet")


@pytest.mark.parametrize(
    ("moment", "dayfirst", "order"),
    [
        (lambda k: f"{1 + k}/{20 - k}/2020 10:30", None, "month"),
        (lambda k: f"{20 - k}/{1 + k}/2020 10:30", None, "day"),
        (lambda k: f"{1 + k}/{12 - k}/2020 10:30", False, "month"),
        (lambda k: f"{12 - k}.{1 + k}.2020 10:30", None, "day"),
    ],
)
def test_times_are_taken_in_the_order_in_which_they_were_meant_and_it_is_said(tmp_path, moment, dayfirst, order):
    path = write_ratings(tmp_path, moment=moment)

    ratings = read(path, TableFormat(dayfirst=dayfirst))

    assert ratings.ordered
    for user in ratings.users:
        items = [ratings.table.ids[row] for row in user.items]
        assert items == [f"i{(int(user.name) + k) % 9}" for k in range(6)]
    assert f"Times are read with the {order} first: " in ratings.warnings[0]


def test_times_of_several_zones_are_ordered_as_they_passed(tmp_path):
    def moment(k):
        # Each is later than the one before, though the clock shows an earlier hour.
        return f"2020-01-01T{20 - 2 * k:02}:00:00-{3 * k:02}:00"

    ratings = read(write_ratings(tmp_path, moment=moment))

    first = ratings.users[0]
    assert [ratings.table.ids[row] for row in first.items] == [f"i{(int(first.name) + k) % 9}" for k in range(6)]
    assert "Time zones" in ratings.warnings[0]


def test_ratings_with_decimal_commas_between_semicolons_are_read_and_odd_ones_are_counted(tmp_path):
    path = write_ratings(tmp_path, rating=lambda k: f"{k},5" if k else "0,5", separator=";")
    path.write_text(path.read_text() + "0;i8;never seen;9\n")

    ratings = read(path)

    assert (ratings.scale.low, ratings.scale.high) == (0.5, 5.5)
    assert [text.split(" ")[0] for text in ratings.warnings] == ["The", "Column", "Commas", "1"]
    assert "1 of 73 values is not a number ('never seen')" in ratings.warnings[1]
