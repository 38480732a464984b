from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._tiles import Tiling

settings.register_profile("tiles", deadline=None)
settings.load_profile("tiles")

TILINGS = st.builds(
    lambda tile, overlap, margin: Tiling(tile, min(overlap, tile // 2), min(margin, min(overlap, tile // 2) // 2)),
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(0, 10),
)
SIZES = st.one_of(
    st.tuples(st.integers(1, 150), st.integers(1, 60)),
    st.integers(1, 20).map(lambda side: (20 * side, side)),  # Panoramas, lying
    st.integers(1, 12).map(lambda side: (side, 20 * side)),  # and standing.
)


def noise(width, height):
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def larger(pixels, scale):
    return pixels.repeat(scale, axis=-3).repeat(scale, axis=-2)


@given(SIZES, TILINGS, st.integers(1, 3))
def test_a_picture_cut_and_joined_is_the_same_picture(size, tiling, scale):
    pixels = noise(*size)

    joined = tiling.blend(larger(tiling.cut(pixels), scale), *size, scale=scale)

    assert np.array_equal(larger(pixels, scale), joined)


@given(SIZES, TILINGS, st.integers(1, 2))
def test_what_lies_in_the_margin_of_a_tile_changes_nothing(size, tiling, scale):
    pixels = noise(*size)
    tiles = larger(tiling.cut(pixels), scale)
    edge = scale * tiling.margin
    spoilt = np.full_like(tiles, 77)
    inner = slice(edge, tiles.shape[1] - edge)
    spoilt[:, inner, inner] = tiles[:, inner, inner]

    joined = tiling.blend(spoilt, *size, scale=scale)

    assert np.array_equal(larger(pixels, scale), joined)


@given(SIZES, TILINGS, st.integers(0, 255))
def test_the_weights_of_the_tiles_sum_to_one_everywhere(size, tiling, level):
    shape = (tiling.count(*size), tiling.tile, tiling.tile, 1)

    joined = tiling.blend(np.full(shape, level, np.uint8), *size)

    assert (joined == level).all()


def test_between_two_tiles_that_disagree_the_answer_is_a_straight_slope():
    tiling = Tiling(tile=32, overlap=16, margin=3)
    assert tiling.starts(42) == (-3, 13)
    tiles = np.stack([np.full((32, 32, 1), level, np.uint8) for level in (40, 240)])

    line = tiling.blend(tiles, 42, 1)[0, :, 0].astype(int)

    steps = np.diff(line)
    assert (line[0], line[-1]) == (40, 240)
    assert (steps >= 0).all()
    assert np.count_nonzero(steps) == tiling.ramp + 1
    assert set(steps[np.flatnonzero(steps)][1:-1]) == {200 // tiling.ramp}


@given(SIZES, TILINGS)
def test_every_pixel_lies_in_a_tile_clear_of_its_margin_and_neighbours_share_enough(size, tiling):
    for length in size:
        starts = tiling.starts(length)

        assert starts[0] == -tiling.margin
        assert starts[-1] + tiling.tile - tiling.margin >= length
        assert all(b - a <= tiling.tile - tiling.overlap for a, b in pairwise(starts))


@pytest.mark.parametrize("values", [(0, 0, 0), (32, 8, 5), (32, 17, 2), (32, 8, -1)])
def test_tiles_whose_ramps_would_meet_are_refused(values):
    with pytest.raises(ValueError, match="Tiles of"):
        Tiling(*values)


def test_beside_the_answer_one_row_of_tiles_is_in_memory():
    import tracemalloc

    tiling, width, height = Tiling(64, 16, 2), 700, 900
    tiles = np.zeros((tiling.count(width, height), 128, 128, 3), np.uint8)
    tracemalloc.start()

    answer = tiling.blend(tiles, width, height, scale=2)

    assert tracemalloc.get_traced_memory()[1] < 1.7 * answer.nbytes
    tracemalloc.stop()
