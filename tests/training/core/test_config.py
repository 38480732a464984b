from dataclasses import dataclass

import pytest

from training.core.command_line import Parser
from training.core.config import Settings, add_options, option
from training.core.errors import CannotTrain
from training.registry import learner_names, learner_type, load_recipe, recipe_names


@dataclass(frozen=True)
class Options:
    fraction: float = option(0.2, "fraction held out", above=0, below=1)
    size: int = option(224, "side length", at_least=32, at_most=512)
    kind: str = option("auto", "kind", choices=("auto", "class"))
    names: tuple[str, ...] = option((), "names")
    tta: bool = option(False, "average")


def parse(*words):
    parser = Parser()
    add_options(parser, Settings(), "training")
    add_options(parser, Options(), "task")
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--epochs", "0"), "--epochs: '0' is not a whole number of at least 1."),
        (("--epochs", "2.5"), "--epochs: '2.5' is not a whole number of at least 1."),
        (("--epochs", "9" * 400 + "x"), "--epochs: '99"),
        (("--batch-size", "-4"), "--batch-size: '-4' is not a whole number of at least 1."),
        (("--rate", "-1"), "--rate: '-1' is not a number above 0."),
        (("--rate", "nan"), "--rate: 'nan' is not a number above 0."),
        (("--rate", "inf"), "--rate: 'inf' is not a number above 0."),
        (("--rate", "0,01"), "--rate: '0,01' is not a number above 0."),
        (("--seeds", "0"), "--seeds: '0' is not a whole number of at least 1."),
        (("--fraction", "1.5"), "--fraction: '1.5' is not a number above 0 and below 1."),
        (("--fraction", "20%"), "--fraction: '20%' is not a number above 0 and below 1."),
        (("--size", "3"), "--size: '3' is not a whole number of at least 32 and at most 512."),
        (("--kind", "classes"), "--kind: 'classes' is not auto or class."),
        (("--device", "gpu"), "--device: 'gpu' is not auto, cpu or cuda."),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_one_sentence(words, sentence):
    with pytest.raises(CannotTrain) as refused:
        parse(*words)

    assert str(refused.value).startswith(sentence)


def test_limits_are_part_of_the_help():
    parser = Parser()
    add_options(parser, Options(), "task")

    text = " ".join(parser.format_help().split())

    assert "fraction held out, above 0 and below 1 (default: 0.2)" in text
    assert "side length, at least 32 and at most 512 (default: 224)" in text
    assert "--kind {auto,class} kind (default: auto)" in text


def test_valid_values_are_read():
    arguments = parse("--fraction", "0.5", "--size", "32", "--kind", "class", "--names", "a, b", "--tta")

    assert (arguments.fraction, arguments.size, arguments.kind) == (0.5, 32, "class")
    assert (arguments.names, arguments.tta) == (("a", "b"), True)


def test_the_defaults_of_every_task_and_recipe_are_within_their_limits():
    defaults = [
        (task, learner_type(task).default_settings, learner_type(task).default_options) for task in learner_names()
    ]
    for name in recipe_names():
        recipe = load_recipe(name)
        defaults += [(name, preset.settings, preset.options) for preset in (recipe, recipe.on_gpu) if preset]

    for name, settings, options in defaults:
        parser = Parser()
        for config in (settings, options):
            add_options(parser, config, name)
        for config in (settings, options):
            for flag, value in vars(config).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    parser.parse_args([f"--{flag.replace('_', '-')}={value}"])
