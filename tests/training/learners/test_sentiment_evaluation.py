"""Evaluation of a text classifier through the task, as the service answers."""

import numpy as np
import pytest

from tests.model_folders import runner
from tests.tiny.sentiment import GLAD, SAD, TASK, graph
from training.learners.sentiment import plots
from training.learners.sentiment.evaluate import (
    PredictedTexts,
    compare_with_baseline,
    describe_failures,
    draw_figures,
    find_deciding_words,
    measure_identity_terms,
    predict_texts,
    tabulate_lengths,
    tabulate_mistakes,
    tabulate_words,
)
from training.learners.sentiment.tfidf_baseline import Baseline, fit_tfidf

RUN = runner(graph())
TEXTS = [f"the film is{word} and{other}" for word in (*GLAD, *SAD) for other in (*GLAD, *SAD)]
TEXTS += ["so good a film " * 15, "a boring film " * 15]
TARGETS = np.array([int(text.count("o") > text.count("a")) for text in TEXTS])


def predict() -> PredictedTexts:
    return PredictedTexts(TASK.labels, TEXTS, TARGETS, predict_texts(TASK, RUN, TEXTS))


def test_predictions_equal_the_answers_of_the_service() -> None:
    for text, prediction in zip(TEXTS, predict().predictions, strict=True):
        answer = TASK.answer(RUN, {"text": text, "words": 50})

        assert prediction.probabilities == pytest.approx(list(answer.probabilities.values()), abs=1e-5)
        assert (prediction.tokens, prediction.parts) == (answer.tokens, answer.parts)
        word_weights = {
            word: weight
            for word, weight in zip(prediction.words, prediction.evidence.max(axis=1), strict=True)
            if weight
        }
        assert set(word_weights) == {word.word.lower() for word in answer.words}


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
    assert table.note == "2 of the texts were read in parts."


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
    table, verdict = compare_with_baseline(predict(), baseline)

    assert baseline.probabilities.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)))
    assert (baseline.probabilities.argmax(axis=1) == TARGETS).mean() > 0.9
    assert [row[0] for row in table.rows] == ["this model (published)", "tf-idf"]
    assert "does not beat" in verdict


def test_model_that_is_always_right_beats_a_baseline_that_is_always_wrong() -> None:
    right = predict()
    true_probabilities = np.eye(2)[TARGETS]
    perfect = PredictedTexts(
        right.labels,
        TEXTS,
        TARGETS,
        [type(s)(p, 1, 1, s.words, s.evidence) for s, p in zip(right.predictions, true_probabilities, strict=True)],
    )

    _, verdict = compare_with_baseline(perfect, Baseline(1 - true_probabilities, "made up"))

    assert f"{len(TEXTS)} texts are right only with the model, 0 only with the baseline" in verdict


def test_effect_of_identity_terms_is_measured() -> None:
    table, sentence = measure_identity_terms(TASK, RUN, 1)

    assert len(table.rows) > 20
    assert {row[1] for row in table.rows} == {"0.500"}
    assert "up to 0.00" in sentence


def test_failures_and_figures_are_made_from_predictions() -> None:
    predicted = predict()
    words = find_deciding_words(predicted, min_count=5)

    assert len(describe_failures(predicted)) == 2
    figures = draw_figures(predicted, words, {"calibrated": [(0.9, 0.8, 20)]})
    assert [figure.title for figure in figures][-1] == "Deciding words"
    assert all(figure.png.startswith(b"\x89PNG") for figure in figures)
    assert plots.draw_curves({"a": [0.1, 0.2], "b": [0.3]}, "t", "x", "y").startswith(b"\x89PNG")
