"""Representations of masks: each preserves the mask."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from tasks._masks import (
    Mask,
    Region,
    StretchedMask,
    distinct_colours,
    encode_run_lengths,
    overlay_jpeg,
    palette_png,
    ring_area,
    stretch_mask,
    trace_regions,
)

masks = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3))
COLOURS = ((0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250))


def fill_region(region: Region, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels inside an odd number of the region's rings."""
    inside = np.zeros(shape, bool)
    for ring in region.rings:
        for (x, y), (end_x, end_y) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            if x == end_x:
                inside[min(y, end_y) : max(y, end_y), x:] ^= True
    return inside


def expand_runs(counts: list[int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.pad(flat, (0, shape[0] * shape[1] - len(flat))).reshape(shape[::-1]).T


@settings(max_examples=300, deadline=None)
@given(masks)
def test_filled_polygons_cover_every_pixel_of_the_mask_once(mask: Mask) -> None:
    regions = trace_regions(mask)

    painted, covered = np.full(mask.shape, 255, np.uint8), np.zeros(mask.shape, int)
    for region in regions:
        inside = fill_region(region, mask.shape)
        painted[inside] = region.label
        covered += inside

    assert np.array_equal(painted, mask)
    assert (covered == 1).all()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_regions_are_connected_with_clockwise_outline_and_counter_clockwise_holes(mask: Mask) -> None:
    for region in trace_regions(mask):
        inside = fill_region(region, mask.shape)
        reached = np.zeros_like(inside)
        reached.flat[np.flatnonzero(inside)[0]] = True
        for _ in range(inside.size):
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            reached = grown & inside

        assert np.array_equal(reached, inside)
        assert ring_area(region.rings[0]) > 0
        assert all(ring_area(ring) < 0 for ring in region.rings[1:])
        assert region.area == inside.sum()


@settings(max_examples=100, deadline=None)
@given(masks)
def test_ring_has_corners_only_where_it_turns(mask: Mask) -> None:
    for region in trace_regions(mask):
        for ring in region.rings:
            steps = np.roll(ring, -1, axis=0) - ring

            assert ((steps == 0).sum(axis=1) == 1).all()
            assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()


def test_hole_and_the_region_inside_it_are_separate() -> None:
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    mask[2:5, 2:5] = 0
    mask[3, 3] = 1

    regions = sorted((region.label, region.area, len(region.rings)) for region in trace_regions(mask))

    assert regions == [(0, 8, 2), (0, 24, 2), (1, 1, 1), (1, 16, 2)]


def test_pixels_that_touch_only_in_a_corner_are_two_regions() -> None:
    regions = [(region.label, region.area) for region in trace_regions(np.array([[1, 0], [0, 1]], np.uint8))]

    assert sorted(regions) == [(0, 1), (0, 1), (1, 1), (1, 1)]


@settings(max_examples=300, deadline=None)
@given(masks)
def test_run_lengths_describe_the_pixels_of_each_class(mask: Mask) -> None:
    run_lengths = encode_run_lengths(mask)

    assert set(run_lengths) == set(np.unique(mask).tolist())
    for label, counts in run_lengths.items():
        assert np.array_equal(expand_runs(counts, mask.shape), mask == label)
        assert min(counts[1:], default=1) > 0


def test_run_lengths_are_column_major_and_start_with_other_classes() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.uint8)

    assert encode_run_lengths(mask) == {0: [3, 3], 1: [0, 3, 3]}


@settings(max_examples=100, deadline=None)
@given(masks)
def test_palette_png_holds_the_indices_and_shows_the_colours(mask: Mask) -> None:
    image = Image.open(io.BytesIO(palette_png(mask, COLOURS)))

    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.array(COLOURS, np.uint8)[mask])


ascending_indices = st.lists(st.integers(0, 11), min_size=1, max_size=40).map(
    lambda steps: np.array(sorted(steps), np.intp)
)


@settings(max_examples=200, deadline=None)
@given(arrays(np.uint8, (12, 12), elements=st.integers(0, 3)), ascending_indices, ascending_indices)
def test_stretched_mask_counts_and_traces_like_the_expanded_mask(
    network: Mask, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> None:
    mask = stretch_mask(network, rows, columns)

    expanded = mask.expand()
    painted = np.full(expanded.shape, 255, np.uint8)
    for region in mask.regions():
        painted[fill_region(region, expanded.shape)] = region.label

    assert np.array_equal(expanded, network[rows][:, columns])
    assert (expanded.shape, mask.counts().sum()) == ((mask.height, mask.width), expanded.size)
    assert np.array_equal(
        np.bincount(mask.small.ravel(), mask.counts().ravel(), 4), np.bincount(expanded.ravel(), minlength=4)
    )
    assert np.array_equal(painted, expanded)
    assert np.array_equal(mask.resample(mask.width, mask.height), expanded)


def test_overlay_respects_max_side_and_blends_half_and_half() -> None:
    mask = StretchedMask(np.array([[1, 2]], np.uint8), np.zeros(100, np.intp), np.repeat([0, 1], 200))

    image = Image.open(io.BytesIO(overlay_jpeg(Image.new("RGB", (400, 100)), mask, COLOURS, max_side=80)))

    assert image.size == (80, 20)
    assert np.abs(np.asarray(image, int)[10, 5] - (125, 0, 0)).max() < 12
    assert np.abs(np.asarray(image, int)[10, 75] - (0, 125, 0)).max() < 12


def test_distinct_colours_are_distinct() -> None:
    for count in (2, 12, 40):
        assert len(set(distinct_colours(count))) == count
