import argparse

import pytest

from training.core.command_line import Parser, Vocabulary, read_leftovers
from training.core.errors import CannotTrain

NAMES = (
    *("augment", "backbone", "batch-size", "data", "device", "epochs"),
    *("models", "no-augment", "rate", "seed", "seeds"),
)


def vocabulary(*names: str) -> Vocabulary:
    return Vocabulary("pets", names or NAMES, lambda option: ["tabular"] if option == "target" else [])


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        ("--lr", "--rate"),
        ("--learning-rate", "--rate"),
        ("--learning_rate", "--rate"),
        ("-lr", "--rate"),
        ("\N{EM DASH}lr", "--rate"),
        ("\N{EN DASH}epochs", "--epochs"),
        ("--bs", "--batch-size"),
        ("--arch", "--backbone"),
        ("--model", "--backbone"),
        ("--ep", "--epochs"),
        ("--epoch", "--epochs"),
        ("--random-state", "--seed"),
    ],
)
def test_names_of_other_programs_and_abbreviations_are_read_and_said_so(typed, option):
    words, notes = vocabulary().rewrite([typed, "3"])

    assert words == [option, "3"]
    assert notes == [f"{typed} is read as {option}."]


@pytest.mark.parametrize("words", [["--batch_size", "3"], ["--batch-size=3"], ["--rate", "-1"], ["--rate", "-.5e-3"]])
def test_names_of_this_program_are_read_without_a_word(words):
    assert vocabulary().rewrite(words) == ([words[0].replace("_", "-"), *words[1:]], [])


def test_a_value_after_an_equals_sign_is_kept():
    assert vocabulary().rewrite(["--lr=--x=1", "--", "--lr"])[0] == ["--rate=--x=1", "--", "--lr"]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--epoch-count", "There is no option --epoch-count; did you mean --epochs?"),
        ("--bacth-size", "There is no option --bacth-size; did you mean --batch-size?"),
        ("--init-lr", "There is no option --init-lr; did you mean --rate?"),
        ("--see", "There is no option --see; did you mean --seed or --seeds?"),
        ("--no-augmentation", "There is no option --no-augmentation; did you mean --no-augment?"),
        ("--target", "There is no option --target for pets; it is an option of tabular."),
        ("--target-col", "There is no option --target-col for pets; --target is an option of tabular."),
        ("--patience", "There is no option --patience: all --epochs are trained, and the weights of the best epoch"),
        ("--output", "There is no option --output: --runs DIR is for checkpoints and reports"),
        ("-e", "There is no option -e; python -m training pets --help lists them."),
    ],
)
def test_an_unknown_option_is_named_with_what_was_probably_meant(typed, sentence):
    with pytest.raises(CannotTrain) as refused:
        vocabulary().rewrite([typed, "3"])

    assert str(refused.value).startswith(sentence)


def test_a_name_with_another_meaning_elsewhere_is_not_read_as_an_abbreviation():
    with pytest.raises(CannotTrain, match="There is no option --model"):
        vocabulary("models", "epochs").rewrite(["--model", "resnet18"])


def test_one_option_under_two_names_is_refused():
    with pytest.raises(CannotTrain, match="--lr and --rate are the same option, --rate; give one of them"):
        vocabulary().rewrite(["--lr", "1", "--rate", "2"])


def test_a_path_alone_is_read_as_the_data(tmp_path):
    arguments = argparse.Namespace(data=None)

    notes = read_leftovers(arguments, [str(tmp_path)], "pets")

    assert (arguments.data, notes) == (str(tmp_path), [f"{tmp_path} is read as --data {tmp_path}."])


@pytest.mark.parametrize("words", [["false"], ["a", "b"]])
def test_words_that_belong_to_no_option_are_refused(words):
    with pytest.raises(CannotTrain, match=f"'{words[0]}' belongs to no option.*separated by commas"):
        read_leftovers(argparse.Namespace(data=None), words, "pets")


def test_a_second_path_is_refused(tmp_path):
    with pytest.raises(CannotTrain, match="belongs to no option"):
        read_leftovers(argparse.Namespace(data="x"), [str(tmp_path)], "pets")


def test_mistakes_that_argparse_finds_are_one_sentence():
    parser = Parser()
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction)

    with pytest.raises(CannotTrain, match=r"^--epochs: a value is missing\.$"):
        parser.parse_args(["--epochs"])
    with pytest.raises(CannotTrain, match=r"^--augment/--no-augment takes no value\.$"):
        parser.parse_args(["--augment=false"])


@pytest.mark.parametrize("typed", ["--size", "--image-size", "--imgsz"])
@pytest.mark.parametrize("owners", [["keypoints"], []])
def test_a_task_that_has_width_and_height_names_them_for_the_size(typed, owners):
    vocabulary = Vocabulary("segmentation", ("width", "height", "seed"), lambda _: owners)

    with pytest.raises(CannotTrain, match=rf"There is no option {typed} .*\. Here, give --width and --height\.$"):
        vocabulary.rewrite([typed, "32"])
