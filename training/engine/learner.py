"""What a task's learner must know to do; a folder of training/learners/ holds one learner and is found by its name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from tasks.contract import Arrays, Task
from training.core.config import Settings
from training.core.results import EmbeddingTable, Evaluation, Trained
from training.core.sources import SourceFetcher
from training.engine.batches import SampleSet
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime


@dataclass(frozen=True)
class Stage:
    """Epochs under one one-cycle schedule, with part of the network frozen or none of it."""

    name: str
    epochs: int
    rate: float
    frozen: bool = False


class Trainable(ABC):
    """A network that learns from samples: all that the training loop asks for.

    Attributes:
        lower_is_better: whether the first of the scores is an error, and falls.
        samples: the training samples.
    """

    lower_is_better: bool = False

    samples: SampleSet

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network; what is random in it comes from torch's generator."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training."""

    @abstractmethod
    def groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """The parameters that learn in this stage; sets `requires_grad` of all others to False."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch. Randomness may come from torch's generator."""

    @abstractmethod
    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Figures on the validation samples, after each epoch; the first decides which is the best epoch."""


@dataclass(frozen=True)
class Phase:
    """A network that is trained before the learner's own, and that it starts from.

    Attributes:
        name: of its folder in the run's, where it is kept.
        trainee: what is trained.
        settings: how.
        keep: takes the trained network, and writes into the folder what others may start from.
    """

    name: str
    trainee: Trainable
    settings: Settings
    keep: Callable[[nn.Module, Path], None]


class Learner(Trainable):
    """How one task is trained on one set of data, which is loaded and checked when the learner is made.

    Attributes:
        summary: one line for the list of learners.
        data_kind: what `--data` names, in words.
        settings: the defaults for data of the user's own.
        options: a frozen dataclass of this learner's own options, with their defaults.
        hub_tag: what model hubs call this kind of task, for the front matter of the card.
        task: the task as it will be published; its labels, columns and sizes come from the data.
    """

    summary: ClassVar[str]
    data_kind: ClassVar[str]
    default_settings: ClassVar[Settings]
    default_options: ClassVar[Any]
    hub_tag: ClassVar[str]

    task: Task

    @classmethod
    @abstractmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> "Learner":
        """A learner for the data at `data`; pretrained weights come by way of the fetcher.

        Raises CannotTrain with one clear sentence where the data cannot be learnt from.
        """

    @abstractmethod
    def data_summary(self) -> str:
        """One or two lines on the data, for the console."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network; what is random in it comes from torch's generator.

        Its inputs are those of the task, in their order; it returns a tuple, of what `loss` and `scores` read.
        """

    def phases(self) -> Iterator[Phase]:
        """What is trained before the network, one after the other; each is asked for when the last one is kept."""
        return iter(())

    @abstractmethod
    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """The module to export: the task's inputs to a tuple of its outputs, calibrated, on the CPU in float32."""

    def calibrated_task(self, served: nn.Module) -> Task:
        """The task as it is published: with what was chosen by validation samples once training was over."""
        return self.task

    @abstractmethod
    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """What is known of the first of the trained networks (`served`), and how much the others differ."""

    @abstractmethod
    def validation(self, count: int) -> Arrays:
        """Real validation samples, as many as there are up to `count`: what the parity gate compares on."""

    @abstractmethod
    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """The settled task with its example, and request bodies whose answers survive rounding on another machine.

        Of real validation samples; the first is the clearest, since the documentation shows it. Asked only where the
        data may be passed on; else the task's own `examples()` serve.
        """

    def embeddings(self, network: nn.Module) -> Sequence[EmbeddingTable]:
        """What a trained network has learnt of each category, user or item, for others to use; none: an empty list."""
        return ()
