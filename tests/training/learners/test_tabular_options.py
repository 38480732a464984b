"""Options of the table learners on the command line."""

import argparse

import pytest

from training.core.config import add_options, overlay
from training.learners.recommendations.learner import Options as RecommendationOptions
from training.learners.tabular.base import Options as TableOptions


@pytest.mark.parametrize("options", [TableOptions(), RecommendationOptions()])
@pytest.mark.parametrize(("arguments", "dayfirst"), [((), None), (("--dayfirst",), True), (("--no-dayfirst",), False)])
def test_the_order_of_dates_is_left_open_unless_it_is_stated(options, arguments, dayfirst):
    parser = argparse.ArgumentParser()
    add_options(parser, options, "options")

    assert overlay(options, vars(parser.parse_args(arguments))).dayfirst is dayfirst
    assert "(default: left open)" in " ".join(parser.format_help().split())
