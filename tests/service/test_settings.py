"""Settings from flags and environment variables, and the messages for invalid ones."""

from pathlib import Path

import pytest

from service.settings import InvalidSetting, Settings, find_service_links, flag_parser, read_settings


def test_flags_override_the_environment_which_overrides_defaults() -> None:
    environment = {"SEVENFOLD_PORT": "9000", "SEVENFOLD_MAX_BATCH": "8", "HOME": "/root"}

    settings = read_settings(["--port", "9001", "--models=elsewhere"], environment)

    assert settings == Settings(port=9001, max_batch=8, models=Path("elsewhere"))


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--max-bach", "3"], {}, "Unknown setting --max-bach. Did you mean --max-batch?"),
        ([], {"SEVENFOLD_MAX_BACH": "3"}, "Unknown setting SEVENFOLD_MAX_BACH. Did you mean SEVENFOLD_MAX_BATCH?"),
        (["--zzz"], {}, "Unknown setting --zzz. Run with --help to list all settings."),
        (["--foo", "1"], {}, "Unknown setting --foo. Run with --help to list all settings."),
        (["--lag"], {}, "Unknown setting --lag. Run with --help to list all settings."),
        (["--prot", "80"], {}, "Unknown setting --prot. Did you mean --port?"),
        ([], {"SEVENFOLD_FOO": "1"}, "Unknown setting SEVENFOLD_FOO. Run with --help to list all settings."),
        (["--port"], {}, "Argument --port: expected one argument. Run with --help to list all settings."),
        (["--port", "http"], {}, "port must be an integer, not 'http'."),
        (["--max-batch=-1"], {}, "max_batch must be between 0 and 9007199254740992, not -1."),
        (["--timeout-ms", "nan"], {}, "timeout_ms must be a number, not 'nan'."),
        (["--port", "99999"], {}, "port must be between 0 and 65535, not 99999."),
        (["--port", "1_0"], {}, "port must be an integer, not '1_0'."),
        (["--host", ""], {}, "host must not be empty."),
        ([], {"SEVENFOLD_DEVICE": "tpu"}, "device must be one of auto, cpu, cuda, not 'tpu'."),
        (["--shadow", "credit=2"], {}, "shadow: credit must be between 0 and 1, not 2."),
        (["--shadow", "credit"], {}, "shadow must be NAME=NUMBER,NAME=NUMBER,… with unique names, not 'credit'."),
        (
            ["--shadow", "all=0.1,all=0.2"],
            {},
            "shadow must be NAME=NUMBER,NAME=NUMBER,… with unique names, not 'all=0.1,all=0.2'.",
        ),
        (["--pin", "credit"], {}, "pin must be NAME=NUMBER,NAME=NUMBER,… with unique names, not 'credit'."),
        (["--pin", "credit=1.5"], {}, "pin: credit must be an integer, not '1.5'."),
        (["--pin", "credit=0"], {}, "pin: credit must be between 1 and 999999999, not 0."),
        (["--only", "credit,"], {}, "only must be NAME,NAME,… with unique names, not 'credit,'."),
        ([], {"SEVENFOLD_ADMIN": "maybe"}, "admin must be on or off, not 'maybe'."),
        (["--api-keys-file", ""], {}, "api_keys_file must not be empty."),
        (["--admin-port", "70000"], {}, "admin_port must be between 0 and 65535, not 70000."),
        (["--shadow-requests", "0"], {}, "shadow_requests must be between 1 and 10000, not 0."),
        (["--shadow-agreement", "1.1"], {}, "shadow_agreement must be between 0 and 1, not 1.1."),
    ],
)
def test_an_invalid_setting_is_rejected_with_a_helpful_message(
    flags: list[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_settings(flags, environment)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (["--pin", "credit=2,adult=10"], {}, Settings(pin={"credit": 2, "adult": 10})),
        (["--only", "credit, adult"], {}, Settings(only=("credit", "adult"))),
        (["--admin", "--port", "9000"], {}, Settings(admin=True, port=9000)),
        (["--admin=off"], {"SEVENFOLD_ADMIN": "1"}, Settings(admin=False)),
        ([], {"SEVENFOLD_ADMIN": "True"}, Settings(admin=True)),
        (["--tls-cert", "a.pem"], {"SEVENFOLD_TLS_KEY": "b"}, Settings(tls_cert=Path("a.pem"), tls_key=Path("b"))),
        (["--cors-origins", "https://a.example, *"], {}, Settings(cors_origins=("https://a.example", "*"))),
    ],
)
def test_pins_names_and_switches_are_read(flags: list[str], environment: dict[str, str], expected: Settings) -> None:
    assert read_settings(flags, environment) == expected


def test_a_token_is_not_shown_with_the_other_settings() -> None:
    settings = read_settings([], {"SEVENFOLD_ADMIN_TOKEN": "hunter2"})

    assert settings.admin_token == "hunter2"  # noqa: S105 -- of this test
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("name", ["SEVENFOLD_MIRROR", "SEVENFOLD_TOOLS"])
def test_variables_of_training_and_tests_are_ignored(name: str) -> None:
    assert read_settings([], {name: "../shared/data"}) == Settings()


def test_an_api_key_is_no_setting_since_it_would_not_protect_the_server() -> None:
    with pytest.raises(InvalidSetting, match="Did you mean SEVENFOLD_API_KEYS_FILE"):
        read_settings([], {"SEVENFOLD_API_KEY": "sevenfold_abc"})


LINKS = {
    "SEVENFOLD_SERVICE_HOST": "10.0.0.7",
    "SEVENFOLD_SERVICE_PORT": "8000",
    "SEVENFOLD_SERVICE_PORT_HTTP": "8000",
    "SEVENFOLD_PORT": "tcp://10.0.0.7:8000",
    "SEVENFOLD_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "SEVENFOLD_PORT_8000_TCP_PROTO": "tcp",
    "SEVENFOLD_PORT_8000_TCP_PORT": "8000",
    "SEVENFOLD_PORT_8000_TCP_ADDR": "10.0.0.7",
    "SEVENFOLD_ADMIN_PORT": "tcp://10.0.0.9:8082",
    "SEVENFOLD_GPU_SERVICE_HOST": "10.0.0.8",
    "SEVENFOLD_GPU_PORT": "udp://[fd00::8]:53",
    "SEVENFOLD_GPU_PORT_53_UDP": "udp://[fd00::8]:53",
}


def test_variables_of_a_kubernetes_service_of_the_same_name_are_no_settings() -> None:
    environment = LINKS | {"SEVENFOLD_MAX_BATCH": "8"}

    assert read_settings([], environment) == Settings(max_batch=8)
    assert set(find_service_links(environment)) == set(LINKS)


def test_port_that_is_a_number_is_a_setting_even_beside_service_links() -> None:
    environment = LINKS | {"SEVENFOLD_PORT": "9000"}

    assert read_settings([], environment) == Settings(port=9000)
    assert "SEVENFOLD_PORT" not in find_service_links(environment)


def test_address_as_the_value_of_another_setting_is_an_error() -> None:
    with pytest.raises(InvalidSetting):
        read_settings([], {"SEVENFOLD_MAX_BATCH": "tcp://10.0.0.7:8000"})


def test_help_lists_settings_with_their_defaults() -> None:
    text = " ".join(flag_parser().format_help().split())

    assert "--max-queue VALUE maximum concurrent requests per model" in text
    assert "default: 256" in text
