"""Embeddings of a tabular network, exported and used in other models."""

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from training.data.download import Fetcher
from training.engine.loop import fit
from training.engine.runtime import Runtime
from training.evaluation.embeddings import write_embeddings
from training.learners.tabular.learner import Options, TabularLearner


def purchases(count=2000, categories=60, seed=0):
    """Shops and products have hidden places on a line; a shop sells more of a product that is near to it.

    Most pairs of a shop and a product do not occur, so one-hot columns say little about them.
    """
    random = np.random.default_rng(seed)
    shops, products = random.uniform(-1, 1, categories), random.uniform(-1, 1, categories)
    shop, product = random.integers(0, categories, count), random.integers(0, categories, count)
    distance = np.abs(shops[shop] - products[product])
    amount = np.round(np.exp(5 - 2 * distance + random.normal(0, 0.1, count)), 2)
    columns = {"shop": [f"s{i}" for i in shop], "product": [f"p{i}" for i in product]}
    return pl.DataFrame(
        {**columns, "part": ["valid" if i % 5 == 0 else "train" for i in range(count)], "amount": amount}
    )


def vectors_of(embeddings, frame, field):
    rows = embeddings.filter(pl.col("field") == field)
    vectors = {row["value"]: np.array(row["vector"]) for row in rows.iter_rows(named=True)}
    return np.stack([vectors.get(value, vectors[None]) for value in frame[field]])


def test_embeddings_help_other_models_more_than_one_hot_columns(tmp_path):
    frame = purchases()
    frame.write_csv(tmp_path / "purchases.csv")
    options = Options(target="amount", split_column="part", layers=("64", "32"), bins=8)
    settings = replace(TabularLearner.default_settings, epochs=15, batch_size=64, rate=0.01)
    learner = TabularLearner.from_data(tmp_path / "purchases.csv", settings, options, Fetcher(tmp_path))
    torch.manual_seed(0)
    network = learner.network()
    list(fit(learner, network, settings, Runtime(torch.device("cpu")), tmp_path))
    write_embeddings(tmp_path / "e.parquet", learner.embeddings(network))

    embeddings = pl.read_parquet(tmp_path / "e.parquet")
    inputs = {
        "one-hot": frame.select("shop", "product").to_dummies().to_numpy(),
        "embeddings": np.hstack([vectors_of(embeddings, frame, field) for field in ("shop", "product")]),
    }
    valid = (frame["part"] == "valid").to_numpy()
    target = np.log1p(frame["amount"].to_numpy())
    errors = {}
    for name, features in inputs.items():
        for model in (Ridge(), KNeighborsRegressor(10)):
            predicted = model.fit(features[~valid], target[~valid]).predict(features[valid])
            errors[type(model).__name__, name] = float(np.sqrt(((predicted - target[valid]) ** 2).mean()))

    assert errors["KNeighborsRegressor", "embeddings"] < 0.8 * errors["KNeighborsRegressor", "one-hot"], errors
    assert errors["Ridge", "embeddings"] <= 1.05 * errors["Ridge", "one-hot"], errors
