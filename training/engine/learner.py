"""The interface of a task's learner; each folder of training/learners/ contains one learner, found by its name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from tasks.contract import Arrays, Run, Task
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import EmbeddingTable, Evaluation, Remeasured, SampleScores, Trained
from training.core.sources import SourceFetcher
from training.engine.batches import SampleSet, random_indices
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime


@dataclass(frozen=True)
class Stage:
    """Epochs under one one-cycle schedule, with all of the network trained or part of it frozen."""

    name: str
    epochs: int
    rate: float
    frozen: bool = False


class Trainable(ABC):
    """A network and the samples it is trained on: all that the training loop needs.

    Attributes:
        lower_is_better: whether the first score is an error.
        samples: the training samples.
    """

    lower_is_better: bool = False

    samples: SampleSet

    @abstractmethod
    def network(self) -> nn.Module:
        """Return a new network, initialised from torch's random generator."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of training, in order."""

    @abstractmethod
    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Return the parameters that are trained in this stage; sets `requires_grad` of all others to False."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch. May draw from torch's random generator."""

    @abstractmethod
    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return the validation scores, called after each epoch; the first score selects the best epoch."""


@dataclass(frozen=True)
class Phase:
    """A network that is trained before the learner's own, which starts from it (such as a language model).

    Attributes:
        name: its folder inside the run folder.
        trainable: what is trained.
        settings: the settings of its training.
        keep: called with the trained network in every process, since each builds what comes next from it.
        save: called with the folder, by the main process; writes what later runs may start from.
    """

    name: str
    trainable: Trainable
    settings: Settings
    keep: Callable[[nn.Module], None]
    save: Callable[[Path], None]


class Learner(Trainable):
    """How one task is trained on one data set, which is read and checked when the learner is created.

    Attributes:
        summary: one line for the list of tasks in `--help`.
        data_kind: what `--data` expects, in words.
        default_settings: settings for the user's own data.
        default_options: a frozen dataclass of the options of this learner, with their defaults.
        hub_tag: the name of this kind of task on model hubs, for the front matter of the card.
        task: the task as it will be published; labels, columns and sizes come from the data.
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
        """Create a learner for the data at `data`; the fetcher downloads pretrained weights.

        Raises CannotTrain, with one clear sentence, if the data cannot be used.
        """

    @abstractmethod
    def data_summary(self) -> str:
        """Describe the data in one or two lines, for the console."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Return a new network, initialised from torch's random generator.

        Its inputs are those of the task, in order; it returns a tuple, which `loss` and `scores` read.
        """

    def phases(self) -> Iterator[Phase]:
        """Yield the networks to train before this one, in order; each is requested after the previous one is saved."""
        return iter(())

    @abstractmethod
    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export: from the task's inputs to a tuple of its outputs, calibrated, float32 on CPU."""

    def calibrated_task(self, served: nn.Module) -> Task:
        """Return the task to publish, with what was fitted on validation samples after training."""
        return self.task

    @abstractmethod
    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Evaluate the first trained network, and how much those of other seeds differ.

        `exported` runs the exported file, with the inputs and outputs of `served`, from which it was made: what is
        reported about the model is measured with it. `served` provides what the file does not return.
        """

    def sample_scores(self, exported: nn.Module) -> SampleScores | None:
        """Return the score of each validation sample, by which versions of a model are compared; None: they are not.

        `exported` runs a model file, with the inputs and outputs of the task.
        """
        return None

    def is_comparable(self, previous: Task) -> bool:
        """Return whether a model of that task can be measured with the inputs of this learner's validation samples.

        By default, if both have the same inputs and outputs; a task whose labels or columns give them their meaning
        compares these too.
        """
        return type(previous) is type(self.task) and (previous.inputs, previous.outputs) == (
            self.task.inputs,
            self.task.outputs,
        )

    @abstractmethod
    def validation_inputs(self, count: int) -> Arrays:
        """Return the inputs of up to `count` real validation samples, for the parity check of the export."""

    def training_inputs(self, count: int) -> Arrays:
        """Return the inputs of up to `count` training samples, chosen at random but always the same, as when served.

        By default those that the network is trained on; a task whose training augments or cuts them does it otherwise.
        """
        batch = self.samples.__getitems__([(0, index) for index in random_indices(len(self.samples), count)])
        return {spec.name: batch[spec.name].numpy() for spec in self.task.inputs}

    @abstractmethod
    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return the calibrated task with its example, and request bodies whose answers survive rounding errors.

        The bodies are real validation samples; the first is the clearest, since the documentation shows it. Called
        only if the data may be redistributed; otherwise the task's own `examples()` are used.
        """

    def remeasure(self, task: Task, run: Run, goldens: Sequence[dict[str, Any]]) -> Remeasured:
        """Measure again the parameters of a published task that its graph does not contain.

        `run` runs the published graph, and `goldens` are the published golden requests. Raises CannotTrain if the
        task has no such parameters.
        """
        raise CannotTrain("This task has no parameters that can be measured without training.")

    def embeddings(self, network: nn.Module) -> Sequence[EmbeddingTable]:
        """Return the trained embeddings of each category, user or item, for use elsewhere; empty where none exist."""
        return ()
