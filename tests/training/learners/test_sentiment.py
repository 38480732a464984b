"""Texts of one's own, from the command line to a model that answers; and what the learner makes of them."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.manifest import read_manifest
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.learners.sentiment import language_model
from training.learners.sentiment.learner import Options, SentimentLearner
from training.publishing.publish import replay

GOOD = ("wonderful", "great", "lovely", "superb", "moving")
BAD = ("boring", "awful", "terrible", "dull", "stupid")
SMALL = Options(
    embedding=8, hidden=12, vocabulary=400, lm_batch_size=4, tuning_batch_size=4, window=12, frequent=50, longest=40
)


def sentence(label: int, random_: random.Random) -> str:
    words = [random_.choice(("the", "film", "was", "a", "story", "with", "actors")) for _ in range(8)]
    words[random_.randrange(8)] = random_.choice((BAD, GOOD)[label])
    words[random_.randrange(8)] = random_.choice((BAD, GOOD)[label])
    return " ".join(words)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path, random_ = tmp_path / "reviews.csv", random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        writer.writerows([sentence(i % 2, random_), ("bad", "good")[i % 2]] for i in range(400))
    return path


def learner_of(path: Path, options: Options = SMALL) -> SentimentLearner:
    return SentimentLearner.from_data(path, Settings(epochs=1, batch_size=16), options, Fetcher(path.parent / "data"))


def test_the_language_model_never_reads_the_validation_texts(reviews: Path) -> None:
    learner = learner_of(reviews)

    train, valid = learner.places

    assert set(train).isdisjoint(valid)
    assert len(learner.own) == len(train)
    assert len(train) + len(valid) == len(learner.read.texts)


def test_texts_without_a_label_are_read_by_the_language_model_only(reviews: Path) -> None:
    with reviews.open("a") as file:
        file.write("a film that nobody has judged yet,\n")

    learner = learner_of(reviews)

    assert len(learner.own) == len(learner.samples) + 1
    assert "1 without a label" in learner.data_summary()


def test_the_network_thaws_from_the_top(reviews: Path) -> None:
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


def test_the_classifier_begins_with_the_encoder_of_the_language_model(reviews: Path, tmp_path: Path) -> None:
    learner = learner_of(reviews)
    phases = learner.phases()
    phase = next(phases)
    network = phase.trainable.network()
    phase.save(network, tmp_path / "kept")

    begun, other = learner.network(), learner_of(reviews, Options(language_model=str(tmp_path / "kept")))

    expected = network.encoder.layers[0].weight_hh_l0
    assert torch.equal(begun.encoder.layers[0].weight_hh_l0, expected)
    assert torch.equal(other.network().encoder.layers[0].weight_hh_l0, expected)
    assert [each.name for each in other.phases()] == ["fine-tune"]
    assert other.sizes == learner.sizes


def test_a_corpus_that_is_not_known_is_named(reviews: Path) -> None:
    with pytest.raises(CannotTrain, match="wikitext-2"):
        learner_of(reviews, Options(corpus="everything"))


def test_a_corpus_that_cannot_be_had_is_done_without(reviews: Path) -> None:
    said: list[str] = []
    fetcher = Fetcher(reviews.parent / "data", "http://127.0.0.1:9", log=said.append, wait_s=0)
    options = Options(vocabulary=400, corpus="wikitext-2")

    learner = SentimentLearner.from_data(reviews, Settings(), options, fetcher)

    assert learner.general == []
    assert any("goes without wikitext-2" in line for line in said)


def test_validation_texts_come_padded_to_a_bucket(reviews: Path) -> None:
    learner = learner_of(reviews)

    tokens = learner.validation_inputs(5)["tokens"]

    assert tokens.dtype == np.int64
    assert tokens.shape[1] in learner.task.buckets


@pytest.mark.slow
def test_own_texts_become_a_model_that_answers(reviews: Path, tmp_path: Path, command: Callable[..., object]) -> None:
    words = [
        "--embedding",
        "16",
        "--hidden",
        "24",
        "--vocabulary",
        "400",
        "--lm-batch-size",
        "8",
        "--tuning-batch-size",
        "8",
        "--window",
        "10",
    ]
    options = ["--epochs", "6", "--batch-size", "16", "--rate", "2e-2", "--dropout", "0.1", "--threads", "1", *words]
    process = command("sentiment", "--data", reviews, "--name", "opinions", *options, "--publish")
    out, err = process.communicate(timeout=170)  # type: ignore[attr-defined]

    assert process.returncode == 0, err  # type: ignore[attr-defined]
    assert [line for line in out.splitlines() if line.endswith(":")][:2] == ["language-model:", "fine-tune:"]
    folder = tmp_path / "models" / "opinions" / "1"
    replay(folder)
    figures = {metric.name: metric.value for metric in read_manifest(folder).metrics}
    assert figures["accuracy"] > 0.8
    card = (folder / "README.md").read_text()
    assert "The language model" in card
    assert "tf-idf" in card
    (run,) = (tmp_path / "runs" / "opinions").glob("*/fine-tune")
    assert language_model.read(run).sizes.embedding == 16
