"""The features of the course's Rossmann lesson, from the official files: a row per shop and day with sales.

Only what is known in advance is used: the calendar, promotions and holidays (including future ones), the shop, the
competition, the weather and web searches. `Customers` is not known in advance, and is never read.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl

from training.core.errors import CannotTrain

TARGET, TIME = "Sales", "Date"
CATEGORIES = (
    "Store",
    "StateHoliday",
    "CompetitionMonthsOpen",
    "Promo2Weeks",
    "StoreType",
    "Assortment",
    "PromoInterval",
    "CompetitionOpenSinceYear",
    "Promo2SinceYear",
    "State",
    "Events",
    "Promo_fw",
    "Promo_bw",
    "StateHoliday_fw",
    "StateHoliday_bw",
    "SchoolHoliday_fw",
    "SchoolHoliday_bw",
)
"""Seventeen of the course's 22 categories; year, month, week, day and weekday are parts of the date."""
NUMBERS = (
    "CompetitionDistance",
    "Max_TemperatureC",
    "Mean_TemperatureC",
    "Min_TemperatureC",
    "Max_Humidity",
    "Mean_Humidity",
    "Min_Humidity",
    "Max_Wind_SpeedKm_h",
    "Mean_Wind_SpeedKm_h",
    "CloudCover",
    "trend",
    "trend_DE",
    "AfterStateHoliday",
    "BeforeStateHoliday",
    "Promo",
    "SchoolHoliday",
)
"""The course's sixteen numbers."""

_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train.csv": ("Store", "Date", "Sales", "Promo", "StateHoliday", "SchoolHoliday"),
        "test.csv": ("Id", "Store", "Date", "Promo", "StateHoliday", "SchoolHoliday"),
        "store.csv": (
            *("Store", "StoreType", "Assortment", "CompetitionDistance", "CompetitionOpenSinceMonth"),
            *("CompetitionOpenSinceYear", "Promo2SinceWeek", "Promo2SinceYear", "PromoInterval"),
        ),
        "store_states.csv": ("Store", "State"),
        "state_names.csv": ("StateName", "State"),
        "googletrend.csv": ("file", "week", "trend"),
        "weather.csv": ("file", "Date", "Events", *NUMBERS[1:10]),
    }
)
"""The official files, and the columns that are read from each."""

_EVENTS = ("Promo", "StateHoliday", "SchoolHoliday")
_WINDOW = 7
_NO_YEAR = 1900
_MAX_MONTHS, _MAX_WEEKS = 24, 25
_MIN_YEAR = 1990
"""An earlier start is treated as unknown."""


def prepare(source: Path, target: Path) -> None:
    """Write sales.parquet, for training, and kaggle_test.parquet, Kaggle's test set, with the same features."""
    files = _read_files(source)
    days = pl.concat([files["train.csv"], files["test.csv"]], how="diagonal_relaxed")
    days = days.with_columns(StateHoliday=(pl.col("StateHoliday") != "0").cast(pl.Int64))
    days = _join_tables(_add_events(days), files)
    columns = [TIME, *CATEGORIES, *NUMBERS]
    sold = days.filter(pl.col("Id").is_null() & (pl.col(TARGET) > 0)).sort(TIME, "Store")
    if not sold.height:
        raise CannotTrain("train.csv contains no day with sales.")
    sold.select(*columns, TARGET).write_parquet(target / "sales.parquet")
    test = days.filter(pl.col("Id").is_not_null()).sort("Id")
    test.select("Id", *columns).write_parquet(target / "kaggle_test.parquet")


def _read_files(source: Path) -> dict[str, pl.DataFrame]:
    """Read the official files. Raises CannotTrain if one is missing or lacks a column."""
    frames = {}
    for name, columns in _FILES.items():
        paths = sorted(source.rglob(name))
        if not paths:
            raise CannotTrain(f"{source} contains no {name}; the Rossmann recipe reads {', '.join(_FILES)}.")
        frame = pl.read_csv(
            paths[0],
            null_values=["NA", ""],
            infer_schema_length=None,
            schema_overrides={"StateHoliday": pl.String},
        )
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise CannotTrain(f"{paths[0]} has no column '{missing[0]}'.")
        frames[name] = frame.select(columns)
    return {name: _parse_date(name, frame) for name, frame in frames.items()}


def _parse_date(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    if TIME not in frame.columns:
        return frame
    try:
        return frame.with_columns(pl.col(TIME).str.to_date("%Y-%m-%d"))
    except pl.exceptions.PolarsError:
        raise CannotTrain(f"{name}: the column '{TIME}' must contain dates like 2015-07-31.") from None


def _add_events(days: pl.DataFrame) -> pl.DataFrame:
    """Add for each kind of event: days since the last and until the next, and how many in the weeks before and after.

    Days since and until are 0 where there is no such event; windows are seven rows, including the day itself.
    """
    days = days.sort("Store", TIME)
    for name in _EVENTS:
        event = pl.when(pl.col(name) > 0).then(pl.col(TIME))
        last, following = event.forward_fill().over("Store"), event.backward_fill().over("Store")
        total = pl.col(name).cum_sum()
        past, ahead = total - total.shift(_WINDOW, fill_value=0), pl.col(name).reverse().cum_sum().reverse()
        days = days.with_columns(
            ((pl.col(TIME) - last).dt.total_days()).fill_null(0).alias(f"After{name}"),
            ((following - pl.col(TIME)).dt.total_days()).fill_null(0).alias(f"Before{name}"),
            past.over("Store").cast(pl.Int64).alias(f"{name}_bw"),
            (ahead - ahead.shift(-_WINDOW, fill_value=0)).over("Store").cast(pl.Int64).alias(f"{name}_fw"),
        )
    return days


def _join_tables(days: pl.DataFrame, files: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Add the shop, its state, the weather there, and web searches there and in the country."""
    days = days.join(_shops(files["store.csv"]), on="Store", how="left")
    days = days.join(files["store_states.csv"], on="Store", how="left")
    names = files["state_names.csv"]
    weather = files["weather.csv"].join(names, left_on="file", right_on="StateName").drop("file")
    days = days.join(weather, on=("State", TIME), how="left")
    days = days.with_columns(_year=pl.col(TIME).dt.iso_year(), _week=pl.col(TIME).dt.week())
    by_state, by_country = _trends(files["googletrend.csv"])
    days = days.join(by_state, on=("State", "_year", "_week"), how="left").join(
        by_country, on=("_year", "_week"), how="left"
    )
    return _add_ages(days)


def _trends(searches: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return web searches by state and for the country, by the ISO week of their Monday; their weeks start on Sundays.

    Those of Lower Saxony are used for Bremen too: the shops in both have the state `HB,NI`.
    """
    start = pl.col("week").str.slice(0, 10).str.to_date("%Y-%m-%d") + pl.duration(days=1)
    state = pl.col("file").str.split("_").list.get(2, null_on_oob=True).replace({"NI": "HB,NI"})
    searches = searches.with_columns(_year=start.dt.iso_year(), _week=start.dt.week(), State=state)
    keys = ("_year", "_week")
    by_state = searches.filter(pl.col("State").is_not_null()).unique(
        ("State", *keys), keep="first", maintain_order=True
    )
    by_country = searches.filter(pl.col("State").is_null()).unique(keys, keep="first", maintain_order=True)
    return by_state.select("State", *keys, "trend"), by_country.select(*keys, trend_DE="trend")


def _shops(shops: pl.DataFrame) -> pl.DataFrame:
    """The shops, with placeholders for unknown years, months and weeks."""
    return shops.with_columns(
        pl.col("CompetitionOpenSinceYear").fill_null(_NO_YEAR).cast(pl.Int64),
        pl.col("CompetitionOpenSinceMonth").fill_null(1).cast(pl.Int64),
        pl.col("Promo2SinceYear").fill_null(_NO_YEAR).cast(pl.Int64),
        pl.col("Promo2SinceWeek").fill_null(1).cast(pl.Int64),
    )


def _add_ages(days: pl.DataFrame) -> pl.DataFrame:
    """Add the months since competition opened (at most 24) and the weeks since Promo2 started (at most 25).

    Competition counts from the middle of its first month, Promo2 from the Monday of its first ISO week (January 4 is
    always in the first week).
    """
    opened = pl.date(pl.col("CompetitionOpenSinceYear"), pl.col("CompetitionOpenSinceMonth"), 15)
    fourth = pl.date(pl.col("Promo2SinceYear"), 1, 4)
    promo_start = fourth.dt.truncate("1w") + pl.duration(weeks=pl.col("Promo2SinceWeek") - 1)

    def age(since: pl.Expr, year: str, unit: int, maximum: int) -> pl.Expr:
        days_since = (pl.col(TIME) - since).dt.total_days()
        known = pl.when(pl.col(year) >= _MIN_YEAR).then(days_since).otherwise(0)
        return (known.clip(0) // unit).clip(0, maximum)

    return days.with_columns(
        CompetitionMonthsOpen=age(opened, "CompetitionOpenSinceYear", 30, _MAX_MONTHS),
        Promo2Weeks=age(promo_start, "Promo2SinceYear", 7, _MAX_WEEKS),
    )
