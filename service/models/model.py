"""A version of a model: its state in the repository, and what it needs to answer requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from service.engine.pipeline import Pipeline
from service.models.leases import Leases
from service.models.precision import precision_name
from tasks.contract import Task
from tasks.deviation import BatchDeviation
from tasks.goldens import Golden
from tasks.manifest import Manifest, Variant


@dataclass(frozen=True)
class Model:
    """A version of a model that is loaded, verified and able to answer requests.

    Attributes:
        deviation: for each output, how much the batch changes it on this device, measured on the goldens.
        leases: held by everybody who uses the pipeline, which is closed when the version is retired and the last lease
            has ended.
        variant: the variant of lower precision that runs; None: the graph in 32 bits.
    """

    manifest: Manifest
    task: Task
    pipeline: Pipeline
    goldens: tuple[Golden, ...]
    card: str
    deviation: BatchDeviation
    leases: Leases
    variant: Variant | None = None

    @property
    def precision(self) -> str:
        """The precision that the graph computes in: 'fp32', 'fp16' or 'int8'."""
        return precision_name(self.variant)

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
    """Not in memory, because other versions are to be served."""
    FAILED = "failed"


class Choice(Enum):
    """What an operator has chosen for a version while the server runs; it holds until another choice or a restart."""

    AUTOMATIC = "automatic"
    """No choice: the settings decide."""
    PROMOTED = "promoted"
    """It answers requests that name no version, although a newer version could."""
    LOADED = "loaded"
    """It is served in addition, and takes its turn if all newer versions are gone."""
    LOADED_BESIDE = "loaded beside"
    """The same for a version newer than the one that answers by default, which it must not replace."""
    UNLOADED = "unloaded"
    """It is not served."""


_EXPLANATIONS: Mapping[LoadState, str] = {
    LoadState.PENDING: "It is not loaded yet.",
    LoadState.SHADOW: "It is being evaluated on shadow traffic.",
    LoadState.REPLACED: "A newer version is served.",
}
"""Why a version in this state is not served, unless it has an explanation of its own."""

Fingerprint = frozenset[tuple[str, int, int]]
"""Name, size in bytes and modification time in nanoseconds of each file in a model folder."""


@dataclass(frozen=True)
class Entry:
    """A version in the folder of models.

    Attributes:
        loaded: the model in memory, if the state is SERVED or SHADOW.
        explanation: why it is not served, if its state does not say it.
        fingerprint: the files when the version was loaded. A version that is not in memory is loaded again when its
            files have changed.
    """

    name: str
    version: str
    state: LoadState = LoadState.PENDING
    loaded: Model | None = None
    explanation: str | None = None
    fingerprint: Fingerprint = frozenset()
    choice: Choice = Choice.AUTOMATIC

    @property
    def number(self) -> int:
        """The version as a number, by which versions are ordered."""
        return int(self.version)

    @property
    def model(self) -> Model | None:
        """The model, if it serves clients."""
        return self.loaded if self.state is LoadState.SERVED else None

    @property
    def shadow(self) -> Model | None:
        """The model, if it is being evaluated on shadow traffic."""
        return self.loaded if self.state is LoadState.SHADOW else None

    @property
    def can_be_loaded(self) -> bool:
        """Whether loading it has not been tried, or has succeeded before."""
        return self.state in (LoadState.PENDING, LoadState.REPLACED)

    @property
    def reason(self) -> str | None:
        """Why the version is not served; None if it is."""
        return None if self.state is LoadState.SERVED else self.explanation or _EXPLANATIONS.get(self.state)
