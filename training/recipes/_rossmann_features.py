"""The features of the course's Rossmann lesson, from the official files: one row a shop and day on which it sold.

What is known in advance alone goes in: the calendar, promotions and holidays (also those to come), the shop, the
competition, the weather and what people searched for. `Customers` is not known in advance, and is never read.
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
"""Seventeen of the course's 22; the year, month, week, day and weekday are parts of the date."""
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
"""The course's sixteen."""

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
"""The official files, and what is read of each."""

_KNOWN_AHEAD = ("Promo", "StateHoliday", "SchoolHoliday")
_WINDOW = 7
_NO_YEAR = 1900
_MAX_MONTHS, _MAX_WEEKS = 24, 25
_LONG_AGO = 1990
"""What is said to have begun before is not known to have begun at all."""


def prepare(source: Path, target: Path) -> None:
    """Writes sales.parquet, to learn from, and kaggle_test.parquet, to be asked about, with the same features."""
    files = _read(source)
    days = pl.concat([files["train.csv"], files["test.csv"]], how="diagonal_relaxed")
    days = days.with_columns(StateHoliday=(pl.col("StateHoliday") != "0").cast(pl.Int64))
    days = _joined(_with_events(days), files)
    columns = [TIME, *CATEGORIES, *NUMBERS]
    sold = days.filter(pl.col("Id").is_null() & (pl.col(TARGET) > 0)).sort(TIME, "Store")
    if not sold.height:
        raise CannotTrain("train.csv holds no day on which a shop sold something.")
    sold.select(*columns, TARGET).write_parquet(target / "sales.parquet")
    asked = days.filter(pl.col("Id").is_not_null()).sort("Id")
    asked.select("Id", *columns).write_parquet(target / "kaggle_test.parquet")


def _read(source: Path) -> dict[str, pl.DataFrame]:
    """The official files by name. Raises CannotTrain where one is missing or is not what it should be."""
    frames = {}
    for name, columns in _FILES.items():
        found = sorted(source.rglob(name))
        if not found:
            raise CannotTrain(f"{source} holds no {name}; the Rossmann recipe reads {', '.join(_FILES)}.")
        frame = pl.read_csv(
            found[0],
            null_values=["NA", ""],
            infer_schema_length=None,
            schema_overrides={"StateHoliday": pl.String},
        )
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise CannotTrain(f"{found[0]} has no column '{missing[0]}'.")
        frames[name] = frame.select(columns)
    return {name: _dated(name, frame) for name, frame in frames.items()}


def _dated(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    if TIME not in frame.columns:
        return frame
    try:
        return frame.with_columns(pl.col(TIME).str.to_date("%Y-%m-%d"))
    except pl.exceptions.PolarsError:
        raise CannotTrain(f"{name}: the column '{TIME}' is to hold dates like 2015-07-31.") from None


def _with_events(days: pl.DataFrame) -> pl.DataFrame:
    """For each shop, by day: since the last and until the next holiday, and how many of the week before and after.

    Days since are counted up from an event, days until up to the next one, both 0 where there is none; windows are of
    seven rows, the day itself among them.
    """
    days = days.sort("Store", TIME)
    for name in _KNOWN_AHEAD:
        event = pl.when(pl.col(name) > 0).then(pl.col(TIME))
        last, following = event.forward_fill().over("Store"), event.backward_fill().over("Store")
        whole = pl.col(name).cum_sum()
        past, ahead = whole - whole.shift(_WINDOW, fill_value=0), pl.col(name).reverse().cum_sum().reverse()
        days = days.with_columns(
            ((pl.col(TIME) - last).dt.total_days()).fill_null(0).alias(f"After{name}"),
            ((following - pl.col(TIME)).dt.total_days()).fill_null(0).alias(f"Before{name}"),
            past.over("Store").cast(pl.Int64).alias(f"{name}_bw"),
            (ahead - ahead.shift(-_WINDOW, fill_value=0)).over("Store").cast(pl.Int64).alias(f"{name}_fw"),
        )
    return days


def _joined(days: pl.DataFrame, files: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """With the shop, its state, the weather there and what was searched for there and in the country."""
    days = days.join(_shops(files["store.csv"]), on="Store", how="left")
    days = days.join(files["store_states.csv"], on="Store", how="left")
    names = files["state_names.csv"]
    weather = files["weather.csv"].join(names, left_on="file", right_on="StateName").drop("file")
    days = days.join(weather, on=("State", TIME), how="left")
    days = days.with_columns(_year=pl.col(TIME).dt.iso_year(), _week=pl.col(TIME).dt.week())
    here, everywhere = _trends(files["googletrend.csv"])
    days = days.join(here, on=("State", "_year", "_week"), how="left").join(
        everywhere, on=("_year", "_week"), how="left"
    )
    return _with_ages(days)


def _trends(searches: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The searches of each state and of the country, by the ISO week of their Monday; theirs begin on Sundays.

    Lower Saxony's stand for Bremen too: the shops there have the state `HB,NI`.
    """
    begun = pl.col("week").str.slice(0, 10).str.to_date("%Y-%m-%d") + pl.duration(days=1)
    state = pl.col("file").str.split("_").list.get(2, null_on_oob=True).replace({"NI": "HB,NI"})
    searches = searches.with_columns(_year=begun.dt.iso_year(), _week=begun.dt.week(), State=state)
    keys = ("_year", "_week")
    here = searches.filter(pl.col("State").is_not_null()).unique(("State", *keys), keep="first", maintain_order=True)
    country = searches.filter(pl.col("State").is_null()).unique(keys, keep="first", maintain_order=True)
    return here.select("State", *keys, "trend"), country.select(*keys, trend_DE="trend")


def _shops(shops: pl.DataFrame) -> pl.DataFrame:
    """The shops, with the years and months that are not known set to what stands for that."""
    return shops.with_columns(
        pl.col("CompetitionOpenSinceYear").fill_null(_NO_YEAR).cast(pl.Int64),
        pl.col("CompetitionOpenSinceMonth").fill_null(1).cast(pl.Int64),
        pl.col("Promo2SinceYear").fill_null(_NO_YEAR).cast(pl.Int64),
        pl.col("Promo2SinceWeek").fill_null(1).cast(pl.Int64),
    )


def _with_ages(days: pl.DataFrame) -> pl.DataFrame:
    """For how many months there has been competition (24 at most), and for how many weeks the lasting promotion (25).

    Competition counts from the middle of its first month, the promotion from the Monday of its first ISO week: the
    fourth of January is always in the first.
    """
    opened = pl.date(pl.col("CompetitionOpenSinceYear"), pl.col("CompetitionOpenSinceMonth"), 15)
    fourth = pl.date(pl.col("Promo2SinceYear"), 1, 4)
    begun = fourth.dt.truncate("1w") + pl.duration(weeks=pl.col("Promo2SinceWeek") - 1)

    def age(since: pl.Expr, year: str, unit: int, most: int) -> pl.Expr:
        days_since = (pl.col(TIME) - since).dt.total_days()
        known = pl.when(pl.col(year) >= _LONG_AGO).then(days_since).otherwise(0)
        return (known.clip(0) // unit).clip(0, most)

    return days.with_columns(
        CompetitionMonthsOpen=age(opened, "CompetitionOpenSinceYear", 30, _MAX_MONTHS),
        Promo2Weeks=age(begun, "Promo2SinceYear", 7, _MAX_WEEKS),
    )
