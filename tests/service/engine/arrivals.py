"""Hypothesis strategies for requests that arrive at a device shared by two models."""

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Arrival:
    """A request: seconds after the one before, index of the model, and number of samples."""

    after_s: float
    model: int
    size: int


arrival_lists = st.lists(
    st.builds(Arrival, st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.1, 5.0]), st.integers(0, 1), st.integers(1, 4)),
    min_size=1,
    max_size=25,
)
