"""What a report says of a classifier of texts, found by way of the task as the service answers."""

import numpy as np
import pytest

from tests.model_folders import runner
from tests.tiny.sentiment import GLAD, SAD, TASK, graph
from training.learners.sentiment import plots
from training.learners.sentiment.evaluate import (
    Judged,
    against_baseline,
    deciding_words,
    failures,
    identity_table,
    length_table,
    said_of,
    views,
    words_table,
    wrong_table,
)
from training.learners.sentiment.tfidf_baseline import Baseline, tf_idf

RUN = runner(graph())
TEXTS = [f"the film is{word} and{other}" for word in (*GLAD, *SAD) for other in (*GLAD, *SAD)]
TEXTS += ["so good a film " * 15, "a boring film " * 15]
TARGETS = np.array([int(text.count("o") > text.count("a")) for text in TEXTS])


def judged() -> Judged:
    return Judged(TASK.labels, TEXTS, TARGETS, said_of(TASK, RUN, TEXTS))


def test_what_is_said_is_what_the_service_answers() -> None:
    for text, said in zip(TEXTS, judged().said, strict=True):
        answer = TASK.answer(RUN, {"text": text, "words": 50})

        assert said.probabilities == pytest.approx(list(answer.probabilities.values()), abs=1e-5)
        assert (said.tokens, said.parts) == (answer.tokens, answer.parts)
        found = {word: weight for word, weight in zip(said.words, said.evidence.max(axis=1), strict=True) if weight}
        assert set(found) == {word.word.lower() for word in answer.words}


def test_the_words_that_decide_are_found_on_their_sides() -> None:
    words = deciding_words(judged(), least=5)

    assert {each.word for each in words["positive"]} == {word.strip() for word in GLAD}
    assert {each.word for each in words["negative"]} == {word.strip() for word in SAD}
    assert all(each.count >= 5 and each.weight > 0 for found in words.values() for each in found)
    assert deciding_words(judged(), least=10_000) == {"negative": [], "positive": []}
    assert [row[0] for row in words_table(words).rows] == ["negative", "positive"]


def test_lengths_are_told_apart_and_parts_are_counted() -> None:
    table = length_table(judged())

    assert [row[0] for row in table.rows] == ["up to 64", "65 to 128"]
    assert sum(int(row[1]) for row in table.rows) == len(TEXTS)
    assert table.note == "2 of the texts were read in parts."


def test_the_surest_mistakes_are_quoted_only_where_that_is_allowed() -> None:
    quoted, unquoted = wrong_table(judged(), quoted=True), wrong_table(judged(), quoted=False)

    assert 0 < len(quoted.rows) == len(unquoted.rows)
    probabilities = [float(row[2]) for row in quoted.rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert quoted.rows[0][4].startswith("the film is")
    assert not any("the film is" in row[4] for row in unquoted.rows)


def test_a_baseline_learns_and_is_compared_on_the_same_texts() -> None:
    train = [f"{text} {i}" for i in range(5) for text in TEXTS]
    labels = TARGETS.tolist() * 5

    found = tf_idf(train, labels, [str(i % 37) for i in range(len(train))], TEXTS, 2)
    table, verdict = against_baseline(judged(), found)

    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)))
    assert (found.probabilities.argmax(axis=1) == TARGETS).mean() > 0.9
    assert [row[0] for row in table.rows] == ["what is served", "tf-idf"]
    assert "does not beat" in verdict


def test_a_network_that_is_always_right_beats_one_that_is_always_wrong() -> None:
    right = judged()
    truth = np.eye(2)[TARGETS]
    perfect = Judged(
        right.labels,
        TEXTS,
        TARGETS,
        [type(s)(p, 1, 1, s.words, s.evidence) for s, p in zip(right.said, truth, strict=True)],
    )

    _, verdict = against_baseline(perfect, Baseline(1 - truth, "made up"))

    assert f"{len(TEXTS)} texts only it gets right, 0 only the baseline" in verdict


def test_whom_a_sentence_names_is_measured() -> None:
    table, sentence = identity_table(TASK, RUN, 1)

    assert len(table.rows) > 20
    assert {row[1] for row in table.rows} == {"0.500"}
    assert "up to 0.00" in sentence


def test_failures_and_figures_are_of_what_was_judged() -> None:
    found = judged()
    words = deciding_words(found, least=5)

    assert len(failures(found)) == 2
    shown = views(found, words, {"calibrated": [(0.9, 0.8, 20)]}, "")
    assert [figure.title for figure in shown][-1] == "The words that decide"
    assert all(figure.png.startswith(b"\x89PNG") for figure in shown)
    assert plots.comparison({"a": [0.1, 0.2], "b": [0.3]}, "t", "x", "y").startswith(b"\x89PNG")
