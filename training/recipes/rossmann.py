"""Rossmann, daily sales of 1,115 shops: the course's lesson on embeddings, from the official files."""

from dataclasses import replace

from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.tabular.learner import Options, TabularLearner
from training.recipes._rossmann_features import CATEGORIES, NUMBERS, TARGET, TIME, prepare

_ROWS, _TEST_ROWS = 844_338, 41_088

_OPTIONS = Options(
    target=TARGET,
    kind="number",
    file="sales.parquet",
    categories=CATEGORIES,
    numbers=NUMBERS,
    dates=(TIME,),
    date_parts=("year", "month", "week", "day", "weekday"),
    split_time=TIME,
    # As many rows as in Kaggle's test set, plus the rest of that day: 41,395, as in the course.
    valid_fraction=_TEST_ROWS / _ROWS,
    log_target="yes",
    metric="rmspe",
    audit=("StoreType", "Assortment", "State"),
    layers=("1000", "500"),
    dropout=0.04,
    bins=8,
    value_dropout=0.001,
)
_SETTINGS = replace(TabularLearner.default_settings, epochs=4, batch_size=1024, rate=2e-3, weight_decay=0.2, threads=0)

RECIPE = Recipe(
    name="rossmann",
    task="tabular",
    title="How much will this shop sell on this day?",
    summary="daily sales of 1,115 shops, a number with its prediction interval, with the fast.ai course's features",
    expected=(
        "a root mean square percentage error near the 0.105 of the fast.ai course; no model is published, since the "
        "data was not available to this project"
    ),
    source=Source(
        name="rossmann",
        # No hash of the archive is published: it is checked by its content.
        official=Archive("https://files.fast.ai/part2/lesson14/rossmann.tgz"),
        mirrored=Archive("tabular/rossmann.tgz"),
        contains=(
            *("train.csv", "test.csv", "store.csv", "store_states.csv", "state_names.csv"),
            *("googletrend.csv", "weather.csv"),
        ),
    ),
    data=DataCard(
        name="Rossmann Store Sales (Kaggle 2015), with states, weather and searches as packaged by fast.ai",
        licence="Kaggle competition rules: no redistribution",
        address="https://www.kaggle.com/c/rossmann-store-sales",
        description=(
            "Days on which a shop had sales; the last 41,395 by time are for validation. 22 categories and 16 numbers, "
            "as in the course; the number of customers is not used, since it is not known in advance."
        ),
    ),
    settings=_SETTINGS,
    options=_OPTIONS,
    on_gpu=Preset(settings=replace(_SETTINGS, epochs=10, batch_size=512, seeds=3), options=_OPTIONS),
    prepare=prepare,
    intended_use="Reproducing the course's lesson on embeddings of categories.",
    out_of_scope="Planning for real shops.",
    caveats=("The inputs are the observed weather; in production, a forecast would be used.",),
)
