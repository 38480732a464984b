"""The features of the Rossmann lesson, from tiny files in the official layout; the real ones are not public."""

import csv
import datetime

import polars as pl
import pytest

from tasks.manifest import read_manifest
from training.__main__ import main
from training.core.errors import CannotTrain
from training.engine.learner import Learner
from training.recipes._rossmann_features import CATEGORIES, NUMBERS, prepare
from training.registry import learner_type, load_recipe

FIRST = datetime.date(2013, 1, 1)
DAYS, TEST_DAYS = 200, 14
WEATHER = (
    *("Max_TemperatureC", "Mean_TemperatureC", "Min_TemperatureC", "Max_Humidity", "Mean_Humidity", "Min_Humidity"),
    *("Max_Wind_SpeedKm_h", "Mean_Wind_SpeedKm_h", "CloudCover"),
)


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def day_of(store, i):
    date = FIRST + datetime.timedelta(days=i)
    is_open = date.weekday() != 6
    return {
        "Store": store,
        "DayOfWeek": date.weekday() + 1,
        "Date": date.isoformat(),
        "Open": int(is_open),
        "Promo": int(i % 14 < 5),
        "StateHoliday": "a" if i in (50, 120) else "0",
        "SchoolHoliday": int(100 <= i < 110),
    }


@pytest.fixture
def official(tmp_path):
    """Three shops in two states over 200 days, and Kaggle's test set for the following fortnight."""
    folder = tmp_path / "rossmann"
    folder.mkdir()
    days = [(store, i, day_of(store, i)) for store in (1, 2, 3) for i in range(DAYS - 1, -1, -1)]
    sales = [
        {
            **day,
            "Sales": day["Open"] * (2000 * store + 37 * (i % 11) + 900 * day["Promo"]),
            "Customers": day["Open"] * 300,
        }
        for store, i, day in days
    ]
    write_csv(folder / "train.csv", sales)
    test_days = [day_of(store, DAYS + i) for store in (1, 3) for i in range(TEST_DAYS)]
    write_csv(
        folder / "test.csv",
        [{"Id": n, **day, "Open": "" if n == 3 else day["Open"]} for n, day in enumerate(test_days)],
    )
    store = {"StoreType": "a", "Assortment": "c", "CompetitionDistance": 1270, "CompetitionOpenSinceMonth": 9}
    store |= {"CompetitionOpenSinceYear": 2012, "Promo2": 0, "Promo2SinceWeek": "NA", "Promo2SinceYear": "NA"}
    store |= {"PromoInterval": ""}
    promo2 = {"Promo2": 1, "Promo2SinceWeek": 5, "Promo2SinceYear": 2013, "PromoInterval": "Jan,Apr,Jul,Oct"}
    unknown = dict.fromkeys(("CompetitionDistance", "CompetitionOpenSinceMonth", "CompetitionOpenSinceYear"), "NA")
    write_csv(
        folder / "store.csv", [{"Store": 1, **store}, {"Store": 2, **store, **promo2}, {"Store": 3, **store, **unknown}]
    )
    write_csv(folder / "store_states.csv", [{"Store": n, "State": s} for n, s in ((1, "BE"), (2, "HB,NI"), (3, "BE"))])
    names = (("Berlin", "BE"), ("Niedersachsen", "HB,NI"))
    write_csv(folder / "state_names.csv", [{"StateName": name, "State": state} for name, state in names])
    sundays = [datetime.date(2012, 12, 30) + datetime.timedelta(weeks=i) for i in range(40)]
    trends = [
        {"file": file, "week": f"{day} - {day + datetime.timedelta(days=6)}", "trend": base + i}
        for file, base in (("Rossmann_DE", 0), ("Rossmann_DE_BE", 100), ("Rossmann_DE_NI", 200))
        for i, day in enumerate(sundays)
    ]
    write_csv(folder / "googletrend.csv", trends)
    weather = [
        {
            "file": name,
            "Date": (FIRST + datetime.timedelta(days=i)).isoformat(),
            **{column: i % 30 + n for n, column in enumerate(WEATHER)},
            "Max_VisibilityKm": 31,
            "Events": "Rain" if i % 3 else "",
        }
        for name, _ in names
        for i in range(DAYS + TEST_DAYS)
    ]
    write_csv(folder / "weather.csv", weather)
    return folder


def run_prepare(official, tmp_path):
    target = tmp_path / "prepared"
    target.mkdir()
    prepare(official, target)
    return pl.read_parquet(target / "sales.parquet"), pl.read_parquet(target / "kaggle_test.parquet")


def row(frame, store, i):
    day = FIRST + datetime.timedelta(days=i)
    return frame.filter((pl.col("Store") == store) & (pl.col("Date") == day)).row(0, named=True)


def test_there_is_a_row_per_shop_and_day_with_sales_and_per_row_of_the_test_set(official, tmp_path):
    sold, test = run_prepare(official, tmp_path)

    open_days = sum((FIRST + datetime.timedelta(days=i)).weekday() != 6 for i in range(DAYS))
    assert sold.height == 3 * open_days
    assert sold.columns == ["Date", *CATEGORIES, *NUMBERS, "Sales"]
    assert test.columns == ["Id", "Date", *CATEGORIES, *NUMBERS]
    assert test["Id"].to_list() == list(range(2 * TEST_DAYS))
    assert (len(CATEGORIES), len(NUMBERS)) == (17, 16)
    assert sold["Date"].is_sorted()


def test_values_known_only_afterwards_are_not_features(official, tmp_path):
    sold, _ = run_prepare(official, tmp_path)

    assert not {"Customers", "Open"} & set(sold.columns)


def test_days_since_and_until_a_holiday_follow_the_shops_calendar(official, tmp_path):
    sold, _ = run_prepare(official, tmp_path)

    day = row(sold, 1, 53)
    assert (day["AfterStateHoliday"], day["BeforeStateHoliday"]) == (3, 67)
    assert (row(sold, 2, 51)["AfterStateHoliday"], row(sold, 2, 121)["BeforeStateHoliday"]) == (1, 0)
    assert row(sold, 3, 1)["AfterStateHoliday"] == 0, "no holiday before"


def test_windows_cover_seven_days_back_and_ahead_of_one_shop(official, tmp_path):
    sold, _ = run_prepare(official, tmp_path)

    for store in (1, 2, 3):
        for i in (0, 1, 8, 16, 104, 198):
            day = row(sold, store, i)
            back = [day_of(store, j) for j in range(max(0, i - 6), i + 1)]
            last = DAYS + TEST_DAYS if store != 2 else DAYS
            ahead = [day_of(store, j) for j in range(i, min(last, i + 7))]
            assert day["Promo_bw"] == sum(past["Promo"] for past in back)
            assert day["Promo_fw"] == sum(future["Promo"] for future in ahead)
            assert day["SchoolHoliday_fw"] == sum(future["SchoolHoliday"] for future in ahead)
            assert day["StateHoliday_bw"] == sum(past["StateHoliday"] != "0" for past in back)


def test_competition_and_promo2_count_from_their_first_day(official, tmp_path):
    sold, _ = run_prepare(official, tmp_path)

    since = (FIRST + datetime.timedelta(days=100) - datetime.date(2012, 9, 15)).days // 30
    assert row(sold, 1, 100)["CompetitionMonthsOpen"] == since
    assert row(sold, 3, 100)["CompetitionMonthsOpen"] == 0, "the start is unknown"
    assert row(sold, 3, 100)["CompetitionDistance"] is None
    promo_start = datetime.date.fromisocalendar(2013, 5, 1)
    assert row(sold, 2, 100)["Promo2Weeks"] == (FIRST + datetime.timedelta(days=100) - promo_start).days // 7
    assert (row(sold, 2, 1)["Promo2Weeks"], row(sold, 1, 100)["Promo2Weeks"]) == (0, 0)


def test_searches_and_weather_match_the_shops_state_and_week(official, tmp_path):
    sold, _ = run_prepare(official, tmp_path)

    berlin, lower_saxony = row(sold, 1, 100), row(sold, 2, 100)
    week = (FIRST + datetime.timedelta(days=100) - datetime.date(2012, 12, 31)).days // 7
    assert (berlin["trend"], lower_saxony["trend"], berlin["trend_DE"]) == (100 + week, 200 + week, week)
    assert (berlin["Max_TemperatureC"], berlin["CloudCover"], berlin["Events"]) == (10, 18, "Rain")
    assert (berlin["State"], lower_saxony["State"]) == ("BE", "HB,NI")


@pytest.mark.parametrize("name", ["train.csv", "store.csv", "googletrend.csv"])
def test_a_missing_or_wrong_file_is_named(official, tmp_path, name):
    (official / name).write_text("a,b\n1,2\n")
    with pytest.raises(CannotTrain, match=f"{name} has no column"):
        prepare(official, tmp_path)

    (official / name).unlink()
    with pytest.raises(CannotTrain, match=f"contains no {name}; the Rossmann recipe reads train.csv, test.csv"):
        prepare(official, tmp_path)


def test_the_network_has_the_courses_22_categories_and_16_numbers(official, tmp_path):
    run_prepare(official, tmp_path)
    rossmann = load_recipe("rossmann")
    learner = learner_type("tabular").from_data(tmp_path / "prepared", rossmann.settings, rossmann.options, None)

    table = learner.task.schema
    assert isinstance(learner, Learner)
    # The tiny table has one year and one type of shop, but columns named by the recipe are used even if constant.
    parts = {column.name for column in table.categories}
    assert {"Date.month", "Date.week", "Date.day", "Date.weekday", *CATEGORIES} <= parts
    assert {column.name for column in table.numbers} == set(NUMBERS)
    assert learner.scale.log
    assert learner.scale.low == 0
    assert learner.metrics[0] == "rmspe"
    assert learner.valid_frame["Date"].min() > learner.train_frame["Date"].max()


@pytest.mark.slow
def test_the_recipe_trains_and_publishes_from_the_official_files(official, tmp_path, capsys):
    paths = ("--data", official, "--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path)
    options = (
        "--epochs",
        "3",
        "--batch-size",
        "64",
        "--rate",
        "0.01",
        "--layers",
        "32",
        "--threads",
        "1",
        "--valid-fraction",
        "0.2",
    )

    status = main([str(word) for word in ("rossmann", *paths, *options, "--device", "cpu", "--publish", "--anyway")])

    assert status == 0, capsys.readouterr().err
    manifest = read_manifest(tmp_path / "models" / "rossmann" / "1")
    assert manifest.metrics[0].name == "rmspe"
    assert "By StoreType" in (tmp_path / "models" / "rossmann" / "1" / "README.md").read_text()
    assert manifest.data.redistributable is False
