"""Cutting images into tiles and blending them again."""

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
    st.integers(1, 20).map(lambda side: (20 * side, side)),  # Panoramas, horizontal
    st.integers(1, 12).map(lambda side: (side, 20 * side)),  # and vertical.
)


def noise(width, height):
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def enlarge(pixels, scale):
    return pixels.repeat(scale, axis=-3).repeat(scale, axis=-2)


@given(SIZES, TILINGS, st.integers(1, 3))
def test_blending_cut_tiles_restores_the_image(size, tiling, scale):
    pixels = noise(*size)

    blended = tiling.blend(enlarge(tiling.cut(pixels), scale), *size, scale=scale)

    assert np.array_equal(enlarge(pixels, scale), blended)


@given(SIZES, TILINGS, st.integers(1, 2))
def test_margins_of_tiles_do_not_affect_the_result(size, tiling, scale):
    pixels = noise(*size)
    tiles = enlarge(tiling.cut(pixels), scale)
    edge = scale * tiling.margin
    damaged = np.full_like(tiles, 77)
    inner = slice(edge, tiles.shape[1] - edge)
    damaged[:, inner, inner] = tiles[:, inner, inner]

    blended = tiling.blend(damaged, *size, scale=scale)

    assert np.array_equal(enlarge(pixels, scale), blended)


@given(SIZES, TILINGS, st.integers(0, 255))
def test_weights_of_tiles_sum_to_one(size, tiling, level):
    shape = (tiling.count(*size), tiling.tile, tiling.tile, 1)

    blended = tiling.blend(np.full(shape, level, np.uint8), *size)

    assert (blended == level).all()


def test_two_different_tiles_blend_linearly():
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
def test_tiles_cover_every_pixel_and_overlap_enough(size, tiling):
    for length in size:
        starts = tiling.starts(length)

        assert starts[0] == -tiling.margin
        assert starts[-1] + tiling.tile - tiling.margin >= length
        assert all(b - a <= tiling.tile - tiling.overlap for a, b in pairwise(starts))


@pytest.mark.parametrize("values", [(0, 0, 0), (32, 8, 5), (32, 17, 2), (32, 8, -1)])
def test_overlapping_ramps_are_rejected(values):
    with pytest.raises(ValueError, match="Tiles of"):
        Tiling(*values)


def test_blending_needs_memory_for_one_row_of_tiles():
    import tracemalloc

    tiling, width, height = Tiling(64, 16, 2), 700, 900
    tiles = np.zeros((tiling.count(width, height), 128, 128, 3), np.uint8)
    tracemalloc.start()

    answer = tiling.blend(tiles, width, height, scale=2)

    assert tracemalloc.get_traced_memory()[1] < 1.7 * answer.nbytes
    tracemalloc.stop()
