import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.core.results import EmbeddingTable
from training.evaluation.embeddings import axis_extremes_table, project_to_principal_axes, write_embeddings
from training.reporting.embedding_plots import draw_embedding_planes

CITY = EmbeddingTable("city", (None, None, "Oslo", "Lima", "Pune"), np.arange(10.0).reshape(5, 2))
DAY = EmbeddingTable("day", ("0", "1", "2"), np.arange(9.0).reshape(3, 3), names=("Mon", "Tue", "Wed"))


def test_each_field_is_written_with_its_values_and_vectors(tmp_path):
    rows = write_embeddings(tmp_path / "new" / "e.parquet", [CITY, DAY])

    frame = pl.read_parquet(tmp_path / "new" / "e.parquet")
    assert rows == frame.height == 8
    assert frame.columns == ["field", "index", "value", "name", "vector"]
    assert frame.filter(pl.col("value") == "Lima").row(0, named=True) == {
        "field": "city",
        "index": 3,
        "value": "Lima",
        "name": "Lima",
        "vector": [6.0, 7.0],
    }
    assert frame.filter(pl.col("field") == "day")["vector"].list.len().to_list() == [3, 3, 3]
    assert frame.filter(pl.col("field") == "day")["name"].to_list() == ["Mon", "Tue", "Wed"]


def test_missing_embeddings_and_unwritable_paths_are_errors(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CannotTrain, match="this network has no embeddings"):
        write_embeddings(tmp_path / "e.parquet", [])
    with pytest.raises(CannotTrain, match="cannot be written"):
        write_embeddings(tmp_path / "file" / "e.parquet", [CITY])
    with pytest.raises(ValueError, match="2 values and 3 vectors"):
        EmbeddingTable("x", ("a", "b"), np.zeros((3, 1)))


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 9))
def test_the_projection_keeps_the_variance_of_the_first_two_axes(count, width, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, width))

    projected, fractions = project_to_principal_axes(vectors)

    centred = vectors - vectors.mean(axis=0)
    assert projected.shape == (count, 2)
    assert np.isclose((projected**2).sum(), fractions.sum() * (centred**2).sum())
    assert fractions[0] >= fractions[1] >= 0
    assert (np.abs(projected).max(axis=0) == projected.max(axis=0)).all(), "the sign of an axis is determined"
    if width <= 2:
        assert fractions.sum() == pytest.approx(1)


def test_the_values_at_the_ends_of_an_axis_are_named():
    line = EmbeddingTable("size", (None, "s", "xl", "m", "l"), np.array([[9.0], [1], [8], [2], [4]]))

    (first, _) = axis_extremes_table([line], count=2).rows

    assert first == ("size", "1, 100% of the variance", "s, m", "xl, l")
    assert axis_extremes_table([EmbeddingTable("two", ("a", "b"), np.zeros((2, 2)))]).rows == ()


def test_any_number_of_fields_of_any_width_is_drawn():
    narrow = EmbeddingTable("one", ("a", "b", "c"), np.array([[1.0], [2], [4]]))

    assert draw_embedding_planes([CITY, DAY, narrow, CITY]).startswith(b"\x89PNG")
    assert draw_embedding_planes([narrow]).startswith(b"\x89PNG")
