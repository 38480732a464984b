"""Studies: from the command line to the published page, and the course's order of networks on number words."""

import re
from itertools import pairwise

import pytest
import torch

from tests.training.conftest import ROOT
from training.__main__ import main
from training.data.download import Fetcher
from training.learners.sentiment.awd_lstm import Dropouts
from training.studies._number_word_networks import Loop, Recurrent, Regularised, ThreeWords
from training.studies._runner import load_study, study_names
from training.studies.human_numbers import STEPS, STUDY, tokenize

SHARED = ROOT.parent / "shared" / "data"
_ONES = (
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def describe_difference(number: int) -> str:
    if number >= 1000:
        return f"{describe_difference(number // 1000)} thousand {describe_difference(number % 1000)}".strip()
    if number >= 100:
        return f"{describe_difference(number // 100)} hundred {describe_difference(number % 100)}".strip()
    return _ONES[number] if number < 20 else f"{_TENS[number // 10]} {_ONES[number % 10]}".strip()


def lines(first: int, last: int) -> str:
    return "".join(f"{describe_difference(number)} \n" for number in range(first, last + 1))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder that contains the number words as if they had been downloaded."""
    root = tmp_path_factory.mktemp("numbers")
    folder = root / "human_numbers"
    folder.mkdir()
    (folder / "train.txt").write_text(lines(1, 7999))
    (folder / "valid.txt").write_text(lines(8001, 9999))
    (root / ".human_numbers.complete").write_text('{"from": "here", "sha256": "none"}\n')
    return root


@pytest.fixture
def run(data, tmp_path, capsys):
    def command(*arguments):
        paths = ["--data-dir", data, "--runs", tmp_path / "runs", "--cards", tmp_path / "cards", "--device", "cpu"]
        status = main([str(word) for word in ("human_numbers", *arguments, *paths, "--threads", "1")])
        caught = capsys.readouterr()
        return status, caught.out, caught.err

    return command


def test_studies_are_found_by_file_name_and_listed_in_the_help(capsys):
    assert "human_numbers" in study_names()
    assert all(load_study(name).name == name for name in study_names())

    main(["--help"])

    assert re.search(r"human_numbers +predict the next word .*\n +expect ", capsys.readouterr().out)


def test_each_study_has_help(capsys):
    for name in study_names():
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])

        assert ended.value.code == 0
        assert "--cards" in capsys.readouterr().out


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")
def test_the_archive_on_the_mirror_contains_the_generated_words(tmp_path):
    folder = Fetcher(tmp_path, str(SHARED), lambda text: None).fetch(STUDY.source)

    for name, first, last in (("train", 1, 7999), ("valid", 8001, 9999)):
        (file,) = folder.rglob(f"{name}.txt")
        assert file.read_text().split() == lines(first, last).split()


def test_words_are_tokenized_in_order():
    corpus = tokenize("one \ntwo \n", "two \n\nthree \n")

    assert corpus.vocabulary == 5
    assert len(corpus.train) == 3
    assert corpus.train[-1] == corpus.valid[0]
    assert corpus.train[1] == corpus.valid[1]


def test_the_loop_computes_the_same_as_the_network_of_three_words():
    torch.manual_seed(0)
    three_words = ThreeWords(9).eval()
    loop = Loop(9).eval()
    loop.load_state_dict(three_words.state_dict())
    tokens = torch.randint(1, 9, (5, 3))

    torch.testing.assert_close(loop(tokens, True), three_words(tokens, True))


@pytest.mark.parametrize(
    "network",
    [
        Loop(9, every_word=True, keeps_state=True),
        Recurrent(9, lambda: torch.nn.RNN(64, 64, batch_first=True)),
        Recurrent(9, lambda: torch.nn.GRU(64, 64, 2, batch_first=True)),
        Regularised(9, Dropouts()),
    ],
    ids=["a loop", "nn.RNN", "GRU", "AWD-LSTM"],
)
def test_a_kept_state_makes_two_batches_one_text(network):
    network.eval()
    tokens = torch.randint(1, 9, (4, 10))

    one_batch = network(tokens, True)
    halves = torch.cat([network(tokens[:, :5], True), network(tokens[:, 5:], False)], dim=1)

    torch.testing.assert_close(halves, one_batch)
    assert one_batch.shape == (4, 10, 9)


def test_a_run_writes_a_report_and_a_page_and_can_be_resumed(run, tmp_path):
    options = ("--epochs", "1", "--seeds", "2", "--only", "nn.RNN")

    status, out, err = run(*options, "--publish")

    assert status == 0, err
    assert len(re.findall(r"^nn\.RNN +seed [01] +0\.\d{4}", out, re.MULTILINE)) == 2
    card = (tmp_path / "cards" / "human_numbers.md").read_text()
    assert "| nn.RNN | the same with ReLU, as in the loop | 0." in card
    assert "python -m training human_numbers --epochs 1 --seeds 2 --only nn.RNN --publish" in card
    (report,) = (tmp_path / "runs" / "human_numbers").rglob("index.html")
    assert not re.findall(r'(?:src|href)="(?!data:)', report.read_text())
    (report.parent / "done.json").unlink()
    again = run(*options)[1]
    assert re.findall(r"0\.\d{4}", again.split("Report")[0])[:2] == re.findall(r"0\.\d{4}", out)[:2]


def test_an_unknown_step_is_an_error_that_names_the_steps(run):
    status, _, err = run("--only", "GRU2")

    assert status == 2
    assert "--only GRU2" in err
    assert "three words" in err


@pytest.mark.slow
def test_the_figures_are_in_the_courses_order(run, tmp_path):
    status, _, err = run("--epochs", "6", "--seeds", "1", "--publish")

    assert status == 0, err
    card = (tmp_path / "cards" / "human_numbers.md").read_text()
    accuracies = {
        row[0]: float(row[1]) for row in re.findall(r"^\| ([^|]+) \| [^|]+ \| (0\.\d+) \|", card, re.MULTILINE)
    }
    assert set(accuracies) == {step.name for step in STEPS}
    assert abs(accuracies["three words"] - accuracies["a loop"]) < 0.05
    order = ["every word", "three words", "state", "nn.RNN", "GRU"]
    assert all(accuracies[worse] < accuracies[better] for worse, better in pairwise(order)), accuracies
    assert accuracies["AWD-LSTM"] > accuracies["GRU"], accuracies
