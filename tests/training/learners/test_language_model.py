"""The language model: its streams of text, its network, and what is kept of it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks._text import BEGIN, PADDING, load_tokenizer, train_tokenizer
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.engine.loop import fit
from training.engine.runtime import Runtime
from training.learners.sentiment import language_model
from training.learners.sentiment.awd_lstm import (
    Dropouts,
    Encoder,
    Explained,
    LanguageModel,
    Sizes,
    TextClassifier,
    TwoLevelSoftmax,
)
from training.learners.sentiment.dataset import Labelled, Stream, counts, shortened
from training.learners.sentiment.language_model import LanguageModelling

VOCABULARY = 20
SIZES = Sizes(VOCABULARY, embedding=6, hidden=8, layers=2)


def texts(count: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Texts in which 3 follows 2, 4 follows 3, and so on."""
    random = np.random.default_rng(seed)
    return [
        np.array([BEGIN, *(2 + (random.integers(18) + np.arange(random.integers(3, 30))) % 18)], np.int32)
        for _ in range(count)
    ]


def batches(stream: Stream, epoch: int, world_size: int = 1, rank: int = 0) -> list[dict[str, torch.Tensor]]:
    keys = stream.batch_keys(stream.rows, seed=0, epoch=epoch, rank=rank, world_size=world_size)
    return [stream.__getitems__(part) for part in keys]


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_a_stream_goes_on_where_the_last_batch_ended(rows: int, window: int, epoch: int) -> None:
    stream = Stream(texts(), rows=rows, window=window, seed=1)

    got = batches(stream, epoch)

    assert len(got) == stream.steps(rows)
    assert [bool(batch["begins"].all()) for batch in got] == [True] + [False] * (len(got) - 1)
    for before, after in pairwise(got):
        assert before["tokens"][:, -1].tolist() == after["tokens"][:, 0].tolist()


def test_a_stream_reads_all_texts_in_another_order_each_epoch() -> None:
    stream = Stream(texts(), rows=1, window=1, seed=1)

    read = [[int(batch["tokens"][0, 0]) for batch in batches(stream, epoch)] for epoch in (0, 1)]

    assert read[0] != read[1]
    assert np.bincount(read[0]).sum() == sum(map(len, texts())) - 1


def test_processes_share_the_rows_of_a_stream() -> None:
    stream = Stream(texts(), rows=4, window=5, seed=1)

    whole = batches(stream, 2)[1]["tokens"]
    parts = [batches(stream, 2, world_size=2, rank=rank)[1]["tokens"] for rank in (0, 1)]

    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])


def test_a_stream_of_two_tokens_is_a_stream() -> None:
    stream = Stream([np.array([BEGIN, 5], np.int32)], rows=64, window=80, seed=0)

    assert batches(stream, 0)[0]["tokens"].tolist() == [[BEGIN, 5]]


def test_texts_of_like_length_share_a_batch_and_each_is_seen_once() -> None:
    samples = Labelled(texts(200), [0] * 200)

    batch_keys = samples.batch_keys(10, seed=0, epoch=0)

    assert sorted(index for batch in batch_keys for _, index in batch) == list(range(200))
    spread = [np.ptp(samples.lengths[[index for _, index in batch]]) for batch in batch_keys]
    assert max(spread) <= 4
    assert batch_keys != samples.batch_keys(10, seed=0, epoch=1)


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    found = shortened(np.arange(100, dtype=np.int32), 8)

    assert found.tolist() == [0, 1, 94, 95, 96, 97, 98, 99]


def test_padding_is_never_counted() -> None:
    assert counts([np.array([0, 0, 3], np.int32)], 5).tolist() == [0, 0, 0, 1, 0]


@given(st.integers(1, VOCABULARY))
def test_the_softmax_in_two_levels_is_a_distribution_over_all_tokens(frequent: int) -> None:
    torch.manual_seed(0)
    softmax = TwoLevelSoftmax(np.random.default_rng(1).permutation(VOCABULARY).tolist(), frequent, 6)
    torch.nn.init.normal_(softmax.bias)
    embedding, x = torch.randn(VOCABULARY, 6), torch.randn(5, 6)

    found = [softmax(x, torch.full((5,), token), embedding) for token in range(VOCABULARY)]

    probabilities = torch.stack([(-loss).exp() for loss in found])
    torch.testing.assert_close(probabilities.sum(0), torch.ones(5))
    assert softmax.likeliest(x, embedding).tolist() == probabilities.argmax(0).tolist()


def test_a_window_read_in_two_halves_is_foreseen_as_in_one() -> None:
    torch.manual_seed(0)
    model = LanguageModel(Encoder(SIZES, Dropouts()), range(VOCABULARY), 5, rows=3).eval()
    tokens = torch.randint(2, VOCABULARY, (3, 13))
    begins, goes_on = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)

    with torch.no_grad():
        whole = model(tokens, begins)[0].reshape(3, 12)
        halves = [model(tokens[:, :7], begins)[0], model(tokens[:, 6:], goes_on)[0]]

    torch.testing.assert_close(torch.cat([half.reshape(3, 6) for half in halves], dim=1), whole)


def test_dropped_recurrent_weights_get_gradients_and_stay_what_they_are() -> None:
    torch.manual_seed(0)
    encoder = Encoder(SIZES, Dropouts(weights=0.5)).train()
    before = encoder.layers[0].weight_hh_l0.detach().clone()
    tokens = torch.randint(2, VOCABULARY, (4, 9))

    first, second = encoder(tokens)[0][-1], encoder(tokens)[0][-1]
    first.sum().backward()

    assert not torch.equal(first, second)
    assert torch.equal(encoder.layers[0].weight_hh_l0, before)
    gradient = encoder.layers[0].weight_hh_l0.grad
    assert gradient is not None
    assert 0.3 < float((gradient == 0).float().mean()) < 0.7


def test_no_dropout_is_left_when_training_is_over() -> None:
    encoder = Encoder(SIZES, Dropouts().times(2.0)).eval()
    tokens = torch.randint(2, VOCABULARY, (4, 9))

    raw, dropped, _ = encoder(tokens)

    assert all(torch.equal(a, b) for a, b in zip(raw, dropped, strict=True))


def classifier() -> TextClassifier:
    torch.manual_seed(0)
    network = TextClassifier(Encoder(SIZES, Dropouts()), 3, 0.1)
    torch.nn.init.uniform_(network.norm.running_mean)
    torch.nn.init.uniform_(network.norm.running_var, 0.5, 2.0)
    return network.eval()


def test_evidence_adds_up_to_the_logits_and_padding_has_none() -> None:
    network = classifier()
    tokens = torch.randint(2, VOCABULARY, (4, 9))
    tokens[1, 5:] = PADDING
    served = Explained(network, shares=(0.5,)).eval()

    with torch.no_grad():
        probabilities, evidence = served(tokens)
        logits = network(tokens)[0] / 2.0

    torch.testing.assert_close(probabilities, logits.softmax(1))
    torch.testing.assert_close(evidence.sum(1) + served.bias, logits - logits.mean(1, keepdim=True))
    assert float(evidence[1, 5:].abs().max()) == 0


def test_an_answer_depends_neither_on_padding_nor_on_its_neighbours() -> None:
    served = Explained(classifier()).eval()
    text = torch.randint(2, VOCABULARY, (1, 6))
    wide = torch.full((3, 32), PADDING)
    wide[1, :6], wide[0, :20], wide[2, :1] = text[0], 7, 3

    with torch.no_grad():
        alone, together = served(text), served(wide)

    torch.testing.assert_close(together[0][1:2], alone[0])
    torch.testing.assert_close(together[1][1:2, :6], alone[1])


def modelling(settings: Settings, start: language_model.Stored | None = None) -> LanguageModelling:
    tokenizer = train_tokenizer(["one two three four"] * 3, size=300, min_count=1)
    return LanguageModelling(
        texts(), texts(8, seed=1), tokenizer, SIZES, Dropouts().times(0.1), settings, window=6, frequent=5, start=start
    )


def test_a_language_model_learns_what_follows_what_and_is_started_from(tmp_path: Path) -> None:
    settings = Settings(epochs=12, batch_size=4, rate=2e-2, clip=1.0)
    trainee = modelling(settings)
    torch.manual_seed(0)
    network = trainee.network()
    runtime = Runtime(torch.device("cpu"))

    rows = list(fit(trainee, network, settings, runtime, tmp_path))
    language_model.write(tmp_path / "kept", trainee.stored(network), {"tokens": 1})
    again = modelling(settings, language_model.read(tmp_path / "kept"))

    assert rows[-1].scores["next_token_accuracy"] > 0.6
    assert rows[-1].scores["perplexity"] < rows[0].scores["perplexity"]
    best = min(row.scores["perplexity"] for row in rows)
    assert again.scores(again.network(), runtime)["perplexity"] == pytest.approx(best, rel=1e-4)


def test_scoring_leaves_the_place_in_the_text_where_it_was() -> None:
    trainee = modelling(Settings(batch_size=4))
    network = trainee.network()
    batch = batches(trainee.samples, 0)[0]
    network(batch["tokens"], batch["begins"])
    before = network.hidden_0.clone()

    trainee.scores(network, Runtime(torch.device("cpu")))

    assert torch.equal(network.hidden_0, before)


def test_a_folder_without_a_language_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match="holds no language model"):
        language_model.read(tmp_path)


def test_the_tokenizer_reads_anything_and_says_where_it_stood() -> None:
    tokenizer = load_tokenizer(train_tokenizer(["a film"], size=300, min_count=1))

    found = tokenizer.encode("Sooooooo 👍", add_special_tokens=False)

    assert found.offsets[-1] == (9, 10)
    assert "".join(tokenizer.decode(found.ids).split()) == "sooo👍"
