"""Masks in the forms in which they travel: each gives the mask back."""

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


def filled(region: Region, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels inside an odd number of the region's rings."""
    inside = np.zeros(shape, bool)
    for ring in region.rings:
        for (x, y), (end_x, end_y) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            if x == end_x:
                inside[min(y, end_y) : max(y, end_y), x:] ^= True
    return inside


def spelt_out(counts: list[int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.pad(flat, (0, shape[0] * shape[1] - len(flat))).reshape(shape[::-1]).T


@settings(max_examples=300, deadline=None)
@given(masks)
def test_polygons_filled_in_are_the_mask_each_pixel_once(mask: Mask) -> None:
    found = trace_regions(mask)

    painted, times = np.full(mask.shape, 255, np.uint8), np.zeros(mask.shape, int)
    for region in found:
        inside = filled(region, mask.shape)
        painted[inside] = region.label
        times += inside

    assert np.array_equal(painted, mask)
    assert (times == 1).all()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_a_regions_pixels_hang_together_its_outline_runs_clockwise_and_its_holes_do_not(mask: Mask) -> None:
    for region in trace_regions(mask):
        inside = filled(region, mask.shape)
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
def test_a_ring_has_a_corner_only_where_it_turns(mask: Mask) -> None:
    for region in trace_regions(mask):
        for ring in region.rings:
            steps = np.roll(ring, -1, axis=0) - ring

            assert ((steps == 0).sum(axis=1) == 1).all()
            assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()


def test_a_ring_within_a_ring_is_a_hole_and_what_lies_in_it_a_region_of_its_own() -> None:
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    mask[2:5, 2:5] = 0
    mask[3, 3] = 1

    found = sorted((region.label, region.area, len(region.rings)) for region in trace_regions(mask))

    assert found == [(0, 8, 2), (0, 24, 2), (1, 1, 1), (1, 16, 2)]


def test_what_touches_in_a_corner_only_is_two_regions() -> None:
    found = [(region.label, region.area) for region in trace_regions(np.array([[1, 0], [0, 1]], np.uint8))]

    assert sorted(found) == [(0, 1), (0, 1), (1, 1), (1, 1)]


@settings(max_examples=300, deadline=None)
@given(masks)
def test_run_lengths_spelt_out_are_the_pixels_of_each_class(mask: Mask) -> None:
    found = encode_run_lengths(mask)

    assert set(found) == set(np.unique(mask).tolist())
    for label, counts in found.items():
        assert np.array_equal(spelt_out(counts, mask.shape), mask == label)
        assert min(counts[1:], default=1) > 0


def test_run_lengths_go_down_the_columns_and_begin_with_what_is_not_of_the_class() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.uint8)

    assert encode_run_lengths(mask) == {0: [3, 3], 1: [0, 3, 3]}


@settings(max_examples=100, deadline=None)
@given(masks)
def test_a_palette_png_holds_the_indices_and_shows_the_colours(mask: Mask) -> None:
    image = Image.open(io.BytesIO(palette_png(mask, COLOURS)))

    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.array(COLOURS, np.uint8)[mask])


risen = st.lists(st.integers(0, 11), min_size=1, max_size=40).map(lambda steps: np.array(sorted(steps), np.intp))


@settings(max_examples=200, deadline=None)
@given(arrays(np.uint8, (12, 12), elements=st.integers(0, 3)), risen, risen)
def test_a_stretched_mask_counts_and_traces_what_the_whole_mask_holds(
    network: Mask, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> None:
    mask = stretch_mask(network, rows, columns)

    whole = mask.expand()
    painted = np.full(whole.shape, 255, np.uint8)
    for region in mask.regions():
        painted[filled(region, whole.shape)] = region.label

    assert np.array_equal(whole, network[rows][:, columns])
    assert (whole.shape, mask.counts().sum()) == ((mask.height, mask.width), whole.size)
    assert np.array_equal(
        np.bincount(mask.small.ravel(), mask.counts().ravel(), 4), np.bincount(whole.ravel(), minlength=4)
    )
    assert np.array_equal(painted, whole)
    assert np.array_equal(mask.resample(mask.width, mask.height), whole)


def test_an_overlay_is_no_longer_than_asked_and_halfway_to_the_colours() -> None:
    mask = StretchedMask(np.array([[1, 2]], np.uint8), np.zeros(100, np.intp), np.repeat([0, 1], 200))

    image = Image.open(io.BytesIO(overlay_jpeg(Image.new("RGB", (400, 100)), mask, COLOURS, max_side=80)))

    assert image.size == (80, 20)
    assert np.abs(np.asarray(image, int)[10, 5] - (125, 0, 0)).max() < 12
    assert np.abs(np.asarray(image, int)[10, 75] - (0, 125, 0)).max() < 12


def test_colours_are_told_apart() -> None:
    for count in (2, 12, 40):
        assert len(set(distinct_colours(count))) == count
