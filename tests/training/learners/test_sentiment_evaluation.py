"""Evaluation of a text classifier through the task, as the service answers."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.contract import Arrays
from tasks.sentiment import Sentiment, interpolate_temperatures
from tests.model_folders import runner
from tests.tiny.sentiment import GLAD, SAD, TASK, graph
from training.learners.sentiment import plots
from training.learners.sentiment.evaluate import (
    PredictedTexts,
    accuracy_scores,
    compare_with_baselines,
    describe_failures,
    draw_figures,
    find_deciding_words,
    measure_identity_terms,
    predict_texts,
    tabulate_baseline,
    tabulate_lengths,
    tabulate_mistakes,
    tabulate_words,
)
from training.learners.sentiment.short_texts import (
    ShortTexts,
    fit_temperatures,
    measure_short_texts,
    tabulate_short_texts,
)
from training.learners.sentiment.tfidf_baseline import Baseline, fit_tfidf

RUN = runner(graph())
TEXTS = [f"the film is{word} and{other}" for word in (*GLAD, *SAD) for other in (*GLAD, *SAD)]
TEXTS += ["so good a film " * 15, "a boring film " * 15]
TARGETS = np.array([int(text.count("o") > text.count("a")) for text in TEXTS])


def predict() -> PredictedTexts:
    return PredictedTexts(TASK.labels, TEXTS, TARGETS, predict_texts(TASK, RUN, TEXTS))


@pytest.mark.parametrize("task", [TASK, replace(TASK, short_text_temperatures=((64, 3.0),))])
def test_predictions_equal_the_answers_of_the_service(task: Sentiment) -> None:
    for text, prediction in zip(TEXTS, predict_texts(task, RUN, TEXTS), strict=True):
        answer = task.answer(RUN, {"text": text, "words": 50})

        assert prediction.probabilities == pytest.approx(list(answer.probabilities.values()), abs=1e-5)
        assert (prediction.tokens, prediction.parts) == (answer.tokens, answer.parts)
        word_weights = {
            word: weight
            for word, weight in zip(prediction.words, prediction.evidence.max(axis=1), strict=True)
            if weight
        }
        assert set(word_weights) == {word.word.lower() for word in answer.words}
        largest = max((word.weight for word in answer.words), default=0.0)
        assert largest == pytest.approx(max(word_weights.values(), default=0.0), abs=1e-3)


def test_deciding_words_are_found_for_each_label() -> None:
    words = find_deciding_words(predict(), min_count=5)

    assert {weight.word for weight in words["positive"]} == {word.strip() for word in GLAD}
    assert {weight.word for weight in words["negative"]} == {word.strip() for word in SAD}
    assert all(word.count >= 5 and word.weight > 0 for weights in words.values() for word in weights)
    assert find_deciding_words(predict(), min_count=10_000) == {"negative": [], "positive": []}
    assert [row[0] for row in tabulate_words(words).rows] == ["negative", "positive"]


def test_accuracy_is_tabulated_by_length_and_texts_in_parts_are_counted() -> None:
    table = tabulate_lengths(predict())

    assert [row[0] for row in table.rows] == ["up to 64", "65 to 128"]
    assert sum(int(row[1]) for row in table.rows) == len(TEXTS)
    assert table.note == f"Read in parts: 2 of {len(TEXTS)} texts."


def test_mistakes_are_quoted_only_if_allowed() -> None:
    quoted, unquoted = tabulate_mistakes(predict(), quoted=True), tabulate_mistakes(predict(), quoted=False)

    assert 0 < len(quoted.rows) == len(unquoted.rows)
    probabilities = [float(row[2]) for row in quoted.rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert quoted.rows[0][4].startswith("the film is")
    assert not any("the film is" in row[4] for row in unquoted.rows)


def test_baseline_learns_and_is_compared_on_the_same_texts() -> None:
    train = [f"{text} {i}" for i in range(5) for text in TEXTS]
    labels = TARGETS.tolist() * 5

    baseline = fit_tfidf(train, labels, [str(i % 37) for i in range(len(train))], TEXTS, 2)
    table = tabulate_baseline(predict(), baseline)
    comparison = compare_with_baselines(predict(), accuracy_scores(predict(), np.arange(len(TEXTS))), baseline, 1)[1]

    assert baseline.probabilities.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)))
    assert (baseline.probabilities.argmax(axis=1) == TARGETS).mean() > 0.9
    assert [row[0] for row in table.rows] == ["this model (published)", "tf-idf"]
    assert comparison.other_value > 0.9
    assert comparison.gain <= 0
    assert comparison.verdict != "surely better"


def test_model_that_is_always_right_beats_a_baseline_that_is_always_wrong() -> None:
    right = predict()
    true_probabilities = np.eye(2)[TARGETS]
    perfect = PredictedTexts(
        right.labels,
        TEXTS,
        TARGETS,
        [type(s)(p, 1, 1, s.words, s.evidence) for s, p in zip(right.predictions, true_probabilities, strict=True)],
    )

    baseline = Baseline(1 - true_probabilities, "Made up")
    scores = accuracy_scores(perfect, np.arange(len(TEXTS)))
    constant, strong = compare_with_baselines(perfect, scores, baseline, most_frequent=1)

    note = tabulate_baseline(perfect, baseline).note
    assert f"{len(TEXTS)} are right only with the model, 0 only with the baseline" in note
    assert (constant.other, constant.verdict) == ("always predicting 'positive'", "surely better")
    assert strong.verdict == "surely better"
    assert describe_failures(perfect) == ()
    assert tabulate_mistakes(perfect, quoted=True).note == "No validation text was given another label than its own."


def test_effect_of_identity_terms_is_measured() -> None:
    table, sentence = measure_identity_terms(TASK, RUN, 1)

    assert len(table.rows) > 20
    assert {row[1] for row in table.rows} == {"0.500"}
    assert sentence == "", "They change nothing."


def test_failures_and_figures_are_made_from_predictions() -> None:
    predicted = predict()
    words = find_deciding_words(predicted, min_count=5)

    assert len(describe_failures(predicted)) == 2
    figures = draw_figures(predicted, words, {"calibrated": [(0.9, 0.8, 20)]})
    assert [figure.title for figure in figures][-1] == "Deciding words"
    assert all(figure.png.startswith(b"\x89PNG") for figure in figures)
    assert plots.draw_curves({"a": [0.1, 0.2], "b": [0.3]}, "t", "x", "y").startswith(b"\x89PNG")


def _always_sure(arrays: Arrays) -> Arrays:
    batch, length = arrays["tokens"].shape
    sure = np.tile(np.array([0.01, 0.99], np.float32), (batch, 1))
    return {"probabilities": sure, "evidence": np.zeros((batch, length, 2), np.float32)}


def _measure_sure_classifier(targets: np.ndarray, half: np.ndarray) -> list[ShortTexts]:
    texts = ["film " + "and so on " * 20] * len(targets)
    return measure_short_texts(TASK, _always_sure, texts, targets, half)


def test_short_texts_are_tempered_until_their_probability_is_how_often_they_are_right() -> None:
    targets = np.tile([1, 1, 1, 0], 50)
    half = np.arange(200) % 8 < 4

    measured = _measure_sure_classifier(targets, half)

    assert measured
    for row in measured:
        assert (row.accuracy, row.confidence) == pytest.approx((0.75, 0.99), abs=1e-6)
        assert row.tempered_confidence == pytest.approx(0.75, abs=1e-3)
        assert row.temperature == pytest.approx(np.log(99) / np.log(3), rel=1e-3)
    assert tabulate_short_texts(measured).rows[0][2:4] == ("0.750", "0.990")


def test_temperatures_are_fitted_as_they_are_interpolated() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(1, 17, 20_000)
    true = ((4, 6.0), (8, 3.0), (16, 2.0))
    logits = random.normal(0, 3, (len(tokens), 2))
    chances = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    targets = (random.random(len(tokens)) < chances).astype(np.int64)
    too_sure = logits * interpolate_temperatures(true, tokens)[:, None]

    fitted = fit_temperatures(too_sure, targets, tokens, (4, 8, 16), np.ones(len(tokens), bool))

    assert [length for length, _ in fitted] == [4, 8, 16]
    assert [value for _, value in fitted] == pytest.approx([6.0, 3.0, 2.0], rel=0.08)


def test_what_short_texts_are_said_to_state_is_measured_on_other_texts_than_the_temperature_was_fitted_on() -> None:
    half = np.arange(200) < 100
    targets = np.where(half, 1, np.tile([1, 0], 100))

    for row in _measure_sure_classifier(targets, half):
        always_right, right_every_other_time = 0.99, 0.5

        assert row.accuracy == pytest.approx(0.75)
        stated = (right_every_other_time + always_right) / 2
        assert row.tempered_confidence == pytest.approx(stated, abs=0.06)
        assert row.tempered_confidence != pytest.approx(float(_stated_with(row.temperature)), abs=0.001)


def _stated_with(temperature: float) -> float:
    return float(1 / (1 + 99 ** (-1 / temperature)))


def test_lengths_that_whole_texts_have_are_not_called_short() -> None:
    texts = ["so good a film", *["so good a film " * 30] * 249]
    targets, half = np.ones(250, np.int64), np.arange(250) < 125

    measured = measure_short_texts(TASK, _always_sure, texts, targets, half)

    shortest = min(len(TASK.preprocess(text).context.spans) for text in texts[1:])
    assert measured
    assert all(row.tokens < shortest for row in measured)


def test_temperatures_of_short_texts_need_two_hundred_texts() -> None:
    targets = np.tile([1, 1, 1, 0], 49)

    assert _measure_sure_classifier(targets, np.arange(196) % 8 < 4) == []


def test_texts_of_a_group_count_once_in_comparisons() -> None:
    groups = np.arange(len(TEXTS)) // 2
    baseline = Baseline(np.eye(2)[TARGETS], "Made up")

    constant, _ = compare_with_baselines(predict(), accuracy_scores(predict(), groups), baseline, 0)

    assert constant.count == len(set(groups.tolist()))
    assert constant.samples == "groups of validation texts"
