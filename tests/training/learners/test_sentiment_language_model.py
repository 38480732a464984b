"""The language model: its streams of text, its network, and saving it; and the classifier on its encoder."""

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
from training.learners.sentiment.awd_lstm import (
    Dropouts,
    Encoder,
    LanguageModel,
    ServedSentiment,
    Sizes,
    TextClassifier,
    TwoLevelSoftmax,
)
from training.learners.sentiment.dataset import LabelledTexts, Stream, count_tokens, truncate_middle
from training.learners.sentiment.language_model import (
    LanguageModelTraining,
    StoredLanguageModel,
    load_language_model,
    save_language_model,
)

VOCABULARY = 20
SIZES = Sizes(VOCABULARY, embedding=6, hidden=8, layers=2)


def texts(count: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Return texts in which 3 follows 2, 4 follows 3, and so on."""
    random = np.random.default_rng(seed)
    return [
        np.array([BEGIN, *(2 + (random.integers(18) + np.arange(random.integers(3, 30))) % 18)], np.int32)
        for _ in range(count)
    ]


def batches(stream: Stream, epoch: int, world_size: int = 1, rank: int = 0) -> list[dict[str, torch.Tensor]]:
    keys = stream.batch_keys(stream.rows, seed=0, epoch=epoch, rank=rank, world_size=world_size)
    return [stream.__getitems__(part) for part in keys]


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_batches_of_a_stream_continue_each_other(rows: int, window: int, epoch: int) -> None:
    stream = Stream(texts(), rows=rows, window=window, seed=1)

    steps = batches(stream, epoch)

    assert len(steps) == stream.steps(rows)
    assert [bool(batch["begins"].all()) for batch in steps] == [True] + [False] * (len(steps) - 1)
    for before, after in pairwise(steps):
        assert before["tokens"][:, -1].tolist() == after["tokens"][:, 0].tolist()


def test_stream_reads_all_texts_in_a_new_order_each_epoch() -> None:
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


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_each_process_validates_its_own_rows_from_step_to_step(world_size: int) -> None:
    stream = Stream(texts(), rows=5, window=7, seed=0)

    parts = [stream.sequential_keys(stream.rows, rank=rank, world_size=world_size) for rank in range(world_size)]

    keys = [key for part in parts for step in part for key in step]
    assert sorted(keys) == [(0, index) for index in range(len(stream))]
    for part in parts:
        read = [stream.__getitems__(step)["tokens"] for step in part]
        assert all(torch.equal(before[:, -1], after[:, 0]) for before, after in pairwise(read))


def test_two_tokens_are_enough_for_a_stream() -> None:
    stream = Stream([np.array([BEGIN, 5], np.int32)], rows=64, window=80, seed=0)

    assert batches(stream, 0)[0]["tokens"].tolist() == [[BEGIN, 5]]


def test_texts_of_similar_length_share_a_batch_and_each_is_seen_once() -> None:
    samples = LabelledTexts(texts(200), [0] * 200)

    batch_keys = samples.batch_keys(10, seed=0, epoch=0)

    assert sorted(index for batch in batch_keys for _, index in batch) == list(range(200))
    spread = [np.ptp(samples.lengths[[index for _, index in batch]]) for batch in batch_keys]
    assert max(spread) <= 4
    assert batch_keys != samples.batch_keys(10, seed=0, epoch=1)


def test_long_text_keeps_its_beginning_and_its_end() -> None:
    truncated = truncate_middle(np.arange(100, dtype=np.int32), 8)

    assert truncated.tolist() == [0, 1, 94, 95, 96, 97, 98, 99]


def test_padding_is_not_counted() -> None:
    assert count_tokens([np.array([0, 0, 3], np.int32)], 5).tolist() == [0, 0, 0, 1, 0]


@given(st.integers(1, VOCABULARY))
def test_two_level_softmax_is_a_distribution_over_all_tokens(frequent: int) -> None:
    torch.manual_seed(0)
    softmax = TwoLevelSoftmax(np.random.default_rng(1).permutation(VOCABULARY).tolist(), frequent, 6)
    torch.nn.init.normal_(softmax.bias)
    embedding, x = torch.randn(VOCABULARY, 6), torch.randn(5, 6)

    losses = [softmax(x, torch.full((5,), token), embedding) for token in range(VOCABULARY)]

    probabilities = torch.stack([(-loss).exp() for loss in losses])
    torch.testing.assert_close(probabilities.sum(0), torch.ones(5))
    assert softmax.most_likely(x, embedding).tolist() == probabilities.argmax(0).tolist()


def test_window_read_in_two_halves_gives_the_same_losses() -> None:
    torch.manual_seed(0)
    model = LanguageModel(Encoder(SIZES, Dropouts()), range(VOCABULARY), 5, rows=3).eval()
    tokens = torch.randint(2, VOCABULARY, (3, 13))
    begins, goes_on = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)

    with torch.no_grad():
        whole = model(tokens, begins)[0].reshape(3, 12)
        halves = [model(tokens[:, :7], begins)[0], model(tokens[:, 6:], goes_on)[0]]

    torch.testing.assert_close(torch.cat([half.reshape(3, 6) for half in halves], dim=1), whole)


def test_recurrent_dropout_keeps_the_parameters_and_masks_their_gradient() -> None:
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


def test_evaluation_mode_has_no_dropout() -> None:
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


def test_evidence_sums_to_the_logits_and_is_zero_at_padding() -> None:
    network = classifier()
    tokens = torch.randint(2, VOCABULARY, (4, 9))
    tokens[1, 5:] = PADDING
    served = ServedSentiment(network, blend_weights=(0.5,)).eval()

    with torch.no_grad():
        probabilities, evidence = served(tokens)
        logits = network(tokens)[0] / 2.0

    torch.testing.assert_close(probabilities, logits.softmax(1))
    torch.testing.assert_close(evidence.sum(1) + served.bias, logits - logits.mean(1, keepdim=True))
    assert float(evidence[1, 5:].abs().max()) == 0


def test_answer_depends_neither_on_padding_nor_on_the_batch() -> None:
    served = ServedSentiment(classifier()).eval()
    text = torch.randint(2, VOCABULARY, (1, 6))
    wide = torch.full((3, 32), PADDING)
    wide[1, :6], wide[0, :20], wide[2, :1] = text[0], 7, 3

    with torch.no_grad():
        alone, together = served(text), served(wide)

    torch.testing.assert_close(together[0][1:2], alone[0])
    torch.testing.assert_close(together[1][1:2, :6], alone[1])


def make_training(settings: Settings, start: StoredLanguageModel | None = None) -> LanguageModelTraining:
    tokenizer = train_tokenizer(["one two three four"] * 3, size=300, min_count=1)
    return LanguageModelTraining(
        texts(), texts(8, seed=1), tokenizer, SIZES, Dropouts().times(0.1), settings, window=6, frequent=5, start=start
    )


def test_language_model_learns_and_another_starts_from_it(tmp_path: Path) -> None:
    settings = Settings(epochs=8, batch_size=4, rate=3e-2, clip=1.0)
    trainable = make_training(settings)
    torch.manual_seed(0)
    network = trainable.network()
    runtime = Runtime(torch.device("cpu"))

    rows = list(fit(trainable, network, settings, runtime, tmp_path))
    save_language_model(tmp_path / "stored", trainable.to_stored(network), {"tokens": 1})
    second = make_training(settings, load_language_model(tmp_path / "stored"))

    assert rows[-1].scores["next_token_accuracy"] > 0.6
    assert rows[-1].scores["perplexity"] < rows[0].scores["perplexity"]
    best = min(row.scores["perplexity"] for row in rows)
    assert second.scores(second.network(), runtime)["perplexity"] == pytest.approx(best, rel=1e-4)


def test_scoring_keeps_the_state_of_training() -> None:
    trainable = make_training(Settings(batch_size=4))
    network = trainable.network()
    batch = batches(trainable.samples, 0)[0]
    network(batch["tokens"], batch["begins"])
    before = network.hidden_0.clone()

    trainable.scores(network, Runtime(torch.device("cpu")))

    assert torch.equal(network.hidden_0, before)


def test_folder_without_a_language_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match="does not contain a language model"):
        load_language_model(tmp_path)


def test_tokenizer_reads_any_text_and_returns_offsets() -> None:
    tokenizer = load_tokenizer(train_tokenizer(["a film"], size=300, min_count=1))

    encoded = tokenizer.encode("Sooooooo 👍", add_special_tokens=False)

    assert encoded.offsets[-1] == (9, 10)
    assert "".join(tokenizer.decode(encoded.ids).split()) == "sooo👍"
