"""A version of a model: its state in the repository, and what it needs to answer requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from service.engine.pipeline import Pipeline
from tasks.contract import Task
from tasks.deviation import BatchDeviation
from tasks.goldens import Golden
from tasks.manifest import Manifest


@dataclass(frozen=True)
class Model:
    """A version of a model that is loaded, verified and able to answer requests.

    Attributes:
        deviation: for each output, how much the batch changes it on this device, measured on the goldens.
    """

    manifest: Manifest
    task: Task
    pipeline: Pipeline
    goldens: tuple[Golden, ...]
    card: str
    deviation: BatchDeviation

    @property
    def example(self) -> Mapping[str, Any]:
        """An example request body: that of the first golden."""
        return self.goldens[0].request

    @property
    def example_answer(self) -> dict[str, Any]:
        """The answer to the example."""
        return {"model": self.manifest.name, "version": self.manifest.version} | self.goldens[0].answer


class LoadState(Enum):
    """The state of a version of a model."""

    PENDING = "pending"
    SERVED = "served"
    SHADOW = "shadow"
    REPLACED = "replaced"
    FAILED = "failed"


_EXPLANATIONS: Mapping[LoadState, str] = {
    LoadState.PENDING: "It is not loaded yet.",
    LoadState.SHADOW: "It is being evaluated on shadow traffic.",
    LoadState.REPLACED: "A newer version is served.",
}
"""Why a version in this state is not served; a version that failed has an error of its own."""

Fingerprint = frozenset[tuple[str, int, int]]
"""Name, size in bytes and modification time in nanoseconds of each file in a model folder."""


@dataclass(frozen=True)
class Entry:
    """A version in the folder of models.

    Attributes:
        loaded: the model in memory, if the state is SERVED or SHADOW.
        error: why it is not served, if the state is FAILED.
        fingerprint: the files when the version was loaded. A version that is not in memory is loaded again when its
            files have changed.
    """

    name: str
    version: str
    state: LoadState = LoadState.PENDING
    loaded: Model | None = None
    error: str | None = None
    fingerprint: Fingerprint = frozenset()

    @property
    def model(self) -> Model | None:
        """The model, if it serves clients."""
        return self.loaded if self.state is LoadState.SERVED else None

    @property
    def shadow(self) -> Model | None:
        """The model, if it is being evaluated on shadow traffic."""
        return self.loaded if self.state is LoadState.SHADOW else None

    @property
    def reason(self) -> str | None:
        """Why the version is not served; None if it is."""
        return self.error if self.state is LoadState.FAILED else _EXPLANATIONS.get(self.state)
