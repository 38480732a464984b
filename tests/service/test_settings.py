"""A setting is what it says, or an error that helps."""

from pathlib import Path

import pytest

from service.settings import InvalidSetting, Settings, flag_parser, read_settings


def test_flags_win_over_the_environment_and_that_over_defaults() -> None:
    environment = {"SEVENFOLD_PORT": "9000", "SEVENFOLD_MAX_BATCH": "8", "HOME": "/root"}

    settings = read_settings(["--port", "9001", "--models=elsewhere"], environment)

    assert settings == Settings(port=9001, max_batch=8, models=Path("elsewhere"))


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--max-bach", "3"], {}, "There is no setting --max-bach. Did you mean --max-batch?"),
        ([], {"SEVENFOLD_MAX_BACH": "3"}, "There is no setting SEVENFOLD_MAX_BACH. Did you mean SEVENFOLD_MAX_BATCH?"),
        (["--zzz"], {}, "There is no setting --zzz. --help lists them all."),
        (["--port", "http"], {}, "port is a number (int), not 'http'."),
        (["--max-batch=-1"], {}, "max_batch is 0 or more, and at most 9007199254740992, not -1."),
        (["--timeout-ms", "nan"], {}, "timeout_ms is a number (float), not 'nan'."),
        (["--port", "99999"], {}, "port is 0 or more, and at most 65535, not 99999."),
        (["--port", "1_0"], {}, "port is a number (int), not '1_0'."),
        (["--host", ""], {}, "host is empty."),
        ([], {"SEVENFOLD_DEVICE": "tpu"}, "device is one of auto, cpu, cuda, not 'tpu'."),
    ],
)
def test_a_wrong_setting_is_an_error_that_helps(flags: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_settings(flags, environment)

    assert str(caught.value) == message


def test_the_trainers_variables_are_left_alone() -> None:
    assert read_settings([], {"SEVENFOLD_MIRROR": "../shared/data"}) == Settings()


def test_help_names_every_setting_with_its_default() -> None:
    text = " ".join(flag_parser().format_help().split())

    assert "--max-queue VALUE requests under way for one model" in text
    assert "default: 256" in text
