"""Compare an exported network with the published version that it would replace, on the same validation samples."""

from dataclasses import dataclass
from pathlib import Path

from tasks.manifest import MODEL, BrokenModel, read_manifest, verify_files
from training.core.results import Comparison
from training.engine.learner import Learner
from training.evaluation.comparison import compare_means
from training.publishing.export import Export, ExportedNetwork
from training.publishing.republish import find_last_version


@dataclass(frozen=True)
class PreviousVersion:
    """What is known about the version that would be replaced: a comparison, or a note why there is none."""

    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()


def compare_with_previous(learner: Learner, export: Export, model: Path) -> PreviousVersion:
    """Measure the last version in the folder `model` with this learner's validation samples.

    It may have been trained on some of them, if it was trained on data that was split in another way: then it appears
    better than it is.
    """
    last = find_last_version(model)
    scores = learner.sample_scores(export.network) if last else None
    if last is None or scores is None:
        return PreviousVersion()
    name = f"version {last.name}, which it replaces"
    try:
        manifest = read_manifest(last)
        verify_files(last, manifest)
        task = manifest.load_task(last)
        if not learner.is_comparable(task):
            return PreviousVersion(notes=(f"Not compared with {name}: its labels, inputs or outputs are others.",))
        previous = learner.sample_scores(ExportedNetwork(last / MODEL, task))
    except (BrokenModel, OSError) as error:
        return PreviousVersion(notes=(f"Not compared with {name}: {error}",))
    assert previous is not None  # noqa: S101 -- The same learner returned scores before.
    return PreviousVersion(comparisons=(compare_means(scores, name, previous.values),))
