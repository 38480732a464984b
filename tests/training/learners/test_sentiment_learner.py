"""The learner of texts, and from the command line to a published model."""

import csv
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.manifest import read_manifest
from training.__main__ import main
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Trained
from training.data.download import Fetcher
from training.learners.sentiment.dataset import LabelledTexts
from training.learners.sentiment.language_model import load_language_model
from training.learners.sentiment.learner import Options, SentimentLearner
from training.publishing.publish import replay

GOOD = ("wonderful", "great", "lovely", "superb", "moving")
BAD = ("boring", "awful", "terrible", "dull", "stupid")
SMALL = Options(
    embedding=8, hidden=12, vocabulary=400, lm_batch_size=4, tuning_batch_size=4, window=12, frequent=50, max_tokens=40
)


def sentence(label: int, generator: random.Random) -> str:
    words = [generator.choice(("the", "film", "was", "a", "story", "with", "actors")) for _ in range(8)]
    words[generator.randrange(8)] = generator.choice((BAD, GOOD)[label])
    words[generator.randrange(8)] = generator.choice((BAD, GOOD)[label])
    return " ".join(words)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path, generator = tmp_path / "reviews.csv", random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        writer.writerows([sentence(i % 2, generator), ("bad", "good")[i % 2]] for i in range(400))
    return path


def learner_of(path: Path, options: Options = SMALL) -> SentimentLearner:
    return SentimentLearner.from_data(path, Settings(epochs=1, batch_size=16), options, Fetcher(path.parent / "data"))


def test_the_language_model_never_reads_the_validation_texts(reviews: Path) -> None:
    learner = learner_of(reviews)

    train, valid = learner.train_indices, learner.valid_indices

    assert set(train).isdisjoint(valid)
    assert len(learner.train_tokens) == len(train)
    assert len(train) + len(valid) == len(learner.data.texts)


def test_only_the_language_model_reads_texts_without_a_label(reviews: Path) -> None:
    with reviews.open("a") as file:
        file.write("a film that nobody has judged yet,\n")

    learner = learner_of(reviews)

    assert len(learner.train_tokens) == len(learner.samples) + 1
    train, valid = len(learner.train_indices), len(learner.valid_indices)
    assert f"2 labels, {train} texts to train on, {valid} to validate, 1 without a label;" in learner.data_summary()


def test_stages_unfreeze_the_network_from_the_top(reviews: Path) -> None:
    learner = learner_of(reviews)
    network = learner.network()

    learning = []
    for stage in learner.stages():
        groups = learner.param_groups(network, stage)
        assert sum(len(group.parameters) for group in groups) == sum(p.requires_grad for p in network.parameters())
        learning.append({name.split(".")[-2] for name, p in network.named_parameters() if p.requires_grad})

    assert learning == [
        {"norm", "head"},
        {"norm", "head", "1"},
        {"norm", "head", "1", "0", "embedding"},
    ]


def test_classifier_starts_with_the_encoder_of_the_language_model(reviews: Path, tmp_path: Path) -> None:
    learner = learner_of(reviews)
    phases = learner.phases()
    phase = next(phases)
    network = phase.trainable.network()
    phase.keep(network)
    phase.save(tmp_path / "stored")

    classifier, other = learner.network(), learner_of(reviews, Options(language_model=str(tmp_path / "stored")))

    expected = network.encoder.layers[0].weight_hh_l0
    assert torch.equal(classifier.encoder.layers[0].weight_hh_l0, expected)
    assert torch.equal(other.network().encoder.layers[0].weight_hh_l0, expected)
    assert [phase.name for phase in other.phases()] == ["fine-tune"]
    assert other.sizes == learner.sizes


def test_unknown_corpus_is_an_error_that_names_the_known_ones(reviews: Path) -> None:
    with pytest.raises(CannotTrain, match="wikitext-2"):
        learner_of(reviews, Options(corpus="everything"))


def test_training_goes_on_without_a_corpus_that_cannot_be_downloaded(reviews: Path) -> None:
    messages: list[str] = []
    fetcher = Fetcher(reviews.parent / "data", "http://127.0.0.1:9", log=messages.append, wait_s=0)
    options = Options(vocabulary=400, corpus="wikitext-2")

    learner = SentimentLearner.from_data(reviews, Settings(), options, fetcher)

    assert learner.corpus_tokens == []
    assert any("is trained without wikitext-2" in line for line in messages)


def test_validation_texts_are_padded_to_a_bucket(reviews: Path) -> None:
    learner = learner_of(reviews)

    tokens = learner.validation_inputs(5)["tokens"]

    assert tokens.dtype == np.int64
    assert tokens.shape[1] in learner.task.buckets


class AlwaysSays(nn.Module):
    """Stands for an exported classifier that gives every text the same label."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = torch.full((len(tokens), 2), 0.1)
        probabilities[:, self.label] = 0.9
        return probabilities, torch.zeros(*tokens.shape, 2)


def evaluate(learner: SentimentLearner, exported: nn.Module | None = None) -> Evaluation:
    torch.manual_seed(0)
    network = learner.network().eval()
    served = learner.to_inference_module(network)
    return learner.evaluate([Trained(0, network, {"accuracy": 0.5})], served, exported or served)


def test_metrics_are_those_of_the_exported_file(reviews: Path) -> None:
    learner = learner_of(reviews)
    targets = learner.held_out.targets.numpy()

    evaluations = [evaluate(learner, AlwaysSays(label)) for label in (0, 1)]

    for label, evaluation in enumerate(evaluations):
        assert evaluation.metrics[0].name == "accuracy"
        assert evaluation.metrics[0].value == pytest.approx((targets == label).mean())
        assert learner.sample_scores(AlwaysSays(label)).values.sum() == (targets == label).sum()
    assert {comparison.other for comparison in evaluations[0].comparisons} >= {"logistic regression on tf-idf"}
    assert evaluations[0].comparisons[1].is_surely_worse


def test_few_texts_leave_probabilities_uncalibrated_and_the_evaluation_says_so(reviews: Path) -> None:
    few, many = learner_of(reviews), learner_of(reviews, replace(SMALL, valid_fraction=0.6))

    evaluations = [evaluate(learner) for learner in (few, many)]

    count = len(few.held_out)
    reason = f"The probabilities are not calibrated: {count} validation texts; at least 200 are needed."
    served = few.to_inference_module(few.network().eval())
    assert (served.blend_weights, few.task.short_text_temperatures) == ((0.5, 0.5), ())
    assert evaluations[0].caveats == (reason,)
    assert reason in evaluations[0].notes[0]
    assert "fitted on" not in evaluations[0].notes[0]
    names = [{metric.name for metric in evaluation.metrics} for evaluation in evaluations]
    assert not {"calibration_error_before", "accuracy_crossed"} & names[0]
    assert evaluations[1].caveats == ()
    assert {"calibration_error_before", "accuracy_crossed"} <= names[1]


@pytest.mark.parametrize("valid", [1, 2, 3])
def test_a_few_validation_texts_are_evaluated_without_an_error(reviews: Path, valid: int) -> None:
    learner = learner_of(reviews)
    learner.valid_indices = learner.valid_indices[:valid]
    learner.held_out = LabelledTexts(learner.held_out.texts[:valid], learner.held_out.targets[:valid].tolist())

    evaluation = evaluate(learner)

    assert all(np.isfinite(metric.value) for metric in evaluation.metrics)


def test_versions_with_other_tokens_or_labels_are_not_compared(reviews: Path) -> None:
    learner = learner_of(reviews)

    assert learner.is_comparable(learner_of(reviews).task)
    assert not learner.is_comparable(learner_of(reviews, replace(SMALL, vocabulary=200)).task)
    assert not learner.is_comparable(replace(learner.task, labels=("good", "bad")))


@pytest.mark.slow
def test_texts_become_a_published_model(reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "--data": reviews,
        "--name": "opinions",
        "--epochs": 3,
        "--batch-size": 16,
        "--rate": 3e-2,
        "--dropout": 0.1,
        "--embedding": 16,
        "--hidden": 24,
        "--vocabulary": 300,
        "--lm-batch-size": 8,
        "--tuning-batch-size": 8,
        "--window": 20,
        "--ngram-bits": 10,
        "--threads": 1,
        "--device": "cpu",
        "--runs": tmp_path / "runs",
        "--models": tmp_path / "models",
        "--data-dir": tmp_path / "data",
    }
    status = main(["sentiment", *(str(word) for flag in flags.items() for word in flag), "--publish"])

    out, err = capsys.readouterr()
    assert status == 0, err
    assert [line for line in out.splitlines() if line.endswith(":")][:2] == ["language-model:", "fine-tune:"]
    folder = tmp_path / "models" / "opinions" / "1"
    replay(folder)
    metrics = {metric.name: metric.value for metric in read_manifest(folder).metrics}
    assert metrics["accuracy"] > 0.8
    card = (folder / "README.md").read_text()
    assert "Language model" in card
    assert "tf-idf" in card
    (run,) = (tmp_path / "runs" / "opinions").glob("*/fine-tune")
    assert load_language_model(run).sizes.embedding == 16
