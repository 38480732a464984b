"""Compare an exported network with the published version that it would replace, on the same validation samples."""

from dataclasses import dataclass
from pathlib import Path

from tasks.manifest import MODEL, BrokenModel, read_manifest, verify_files
from tasks.system_errors import os_error_reason
from tasks.version_folder import find_last_version
from training.core.results import Comparison, SampleScores
from training.engine.learner import Learner
from training.evaluation.comparison import compare_means
from training.publishing.export import Export, ExportedNetwork


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
        previous = _measure(learner, last)
    except _NotComparable as reason:
        return PreviousVersion(notes=(f"Not compared with {name}: {reason}",))
    return PreviousVersion(comparisons=(compare_means(scores, name, previous.values),))


class _NotComparable(Exception):
    """A version cannot be measured with a learner's validation samples; the message is why, without a path."""


def _measure(learner: Learner, version: Path) -> SampleScores:
    """Return the scores of a version. Raises _NotComparable."""
    try:
        manifest = read_manifest(version)
        verify_files(version, manifest)
        task = manifest.load_task(version)
    except BrokenModel as error:
        raise _NotComparable(str(error)) from None
    except OSError as error:
        raise _NotComparable(f"its folder cannot be read: {os_error_reason(error)}.") from None
    if not learner.is_comparable(task):
        raise _NotComparable("its labels, inputs or outputs are others.")
    try:
        scores = learner.sample_scores(ExportedNetwork(version / MODEL, task))
    except Exception as error:  # The runtime's exceptions have no other common base class.
        raise _NotComparable(f"its {MODEL} cannot be run ({type(error).__name__}).") from error
    if scores is None:
        raise _NotComparable("it has no scores.")
    return scores
