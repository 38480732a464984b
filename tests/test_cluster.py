"""Parts of the cluster test that need no cluster."""

import os
import subprocess
import sys

import pytest

from loadtests.server import free_ports
from tests.cluster.__main__ import main
from tests.cluster.api import parse_warning
from tests.cluster.control_plane import crds_in
from tests.cluster.lifecycle import Template, check_rolled
from tests.cluster.processes import ClusterError, Processes, wait_until
from tests.cluster.refusals import bad_pod, deployment_of
from tests.cluster.stand_in import environment_of, finished_status, on_this_machine, replace_service
from tests.cluster.tools import MissingTool, find_binaries, staging_edits, version_flags

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_staging_modules_are_taken_as_published():
    module = {
        "Require": [
            {"Path": "k8s.io/api", "Version": "v0.0.0"},
            {"Path": "github.com/spf13/cobra", "Version": "v1.8.1"},
        ],
        "Replace": [{"Old": {"Path": "k8s.io/api"}, "New": {"Path": "./staging/src/k8s.io/api"}}],
    }

    assert staging_edits(module, "1.33.4") == ["-dropreplace=k8s.io/api", "-require=k8s.io/api@v0.33.4"]


def test_a_module_without_staging_needs_no_edits():
    assert staging_edits({"Require": None, "Replace": None}, "1.33.4") == []


def test_the_programs_are_told_their_version():
    assert "version.gitVersion=v1.33.4 " in version_flags("1.33.4")
    assert "version.gitMinor=33 " in version_flags("1.33.4")


def test_a_missing_program_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.cluster.tools.CACHE", tmp_path)

    with pytest.raises(MissingTool, match=r"kube-apiserver.*python -m tests\.cluster tools"):
        find_binaries("1.33.4")


def test_a_folder_without_a_chart_is_an_error(tmp_path):
    with pytest.raises(MissingTool, match="not a Helm chart"):
        main(["--chart", str(tmp_path)])


@pytest.fixture
def chart(tmp_path):
    (tmp_path / "ci").mkdir()
    (tmp_path / "Chart.yaml").touch()
    (tmp_path / "ci" / "default-values.yaml").touch()
    return tmp_path


def test_an_unknown_case_is_an_error_that_lists_those_there_are(chart):
    with pytest.raises(ClusterError, match=r"--only defualt: no such case. There are default, controls"):
        main(["--chart", str(chart), "--only", "defualt"])


def test_a_document_without_a_place_is_an_error_before_the_run(chart):
    (chart / "document.md").write_text("# Kubernetes\n")

    with pytest.raises(ClusterError, match="no place for the table"):
        main(["--chart", str(chart), "--write", "--document", str(chart / "document.md")])


def test_programs_are_ended_when_the_harness_fails(tmp_path):
    pids = []

    def run():
        with Processes(tmp_path) as processes:
            processes.start("one", SLEEPER)
            processes.start("two", SLEEPER)
            pids.extend(processes.ids())
            raise ClusterError("something else failed")

    with pytest.raises(ClusterError, match="something else"):
        run()

    assert [is_running(pid) for pid in pids] == [False, False]


def test_a_program_that_ends_is_an_error_with_the_end_of_its_log(tmp_path):
    with Processes(tmp_path) as processes:
        processes.start("broken", [sys.executable, "-c", "raise SystemExit('no such flag')"])

        def ended():
            try:
                processes.check()
            except ClusterError as error:
                return str(error)
            return None

        message = wait_until(ended, "it ends", 30)

    assert "broken ended with status 1" in message
    assert "no such flag" in message


def test_waiting_ends_with_an_error_that_says_for_what():
    with pytest.raises(ClusterError, match="the moon is full"):
        wait_until(lambda: None, "the moon is full", 0)


def test_ports_differ():
    ports = free_ports(5)

    assert len(set(ports)) == 5


def test_warnings_of_the_server_are_read_without_their_code():
    assert parse_warning('299 - "spec.x: deprecated \\"y\\""') == 'spec.x: deprecated "y"'


def test_only_custom_resource_definitions_are_taken_from_a_file():
    crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: things.example.com\n"

    found = crds_in(f"---\n{crd}---\nkind: Role\nmetadata:\n  name: other\n")

    assert [name for name, _ in found] == ["things.example.com"]


def test_a_rollout_needs_a_new_template_and_a_new_checksum():
    old, same_settings, new = Template("a", "1"), Template("b", "1"), Template("b", "2")

    assert check_rolled({"server": old}, {"server": new}) == "a → b"
    with pytest.raises(AssertionError, match="checksum"):
        check_rolled({"server": old}, {"server": same_settings})
    with pytest.raises(AssertionError, match="did not replace"):
        check_rolled({"server": old}, {"server": old})


def test_variables_of_a_container_win_over_those_of_a_config_map():
    container = {
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "none", "optional": True}}],
        "env": [{"name": "B", "value": "own"}, {"name": "C", "valueFrom": {"fieldRef": {}}}],
    }

    variables = environment_of(container, lambda kind, name: {"data": {"A": "map", "B": "map"}})

    assert variables == {"A": "map", "B": "own"}


def test_ports_and_folders_are_those_of_this_machine(tmp_path):
    variables = {"SEVENFOLD_PORT": "8080", "SEVENFOLD_ADMIN_PORT": "8082", "SEVENFOLD_MAX_QUEUE": "9"}

    replaced = on_this_machine(variables, {"http": 1, "admin": 2}, tmp_path)

    assert replaced == {
        "SEVENFOLD_PORT": "1",
        "SEVENFOLD_ADMIN_PORT": "2",
        "SEVENFOLD_MAX_QUEUE": "9",
        "SEVENFOLD_HOST": "127.0.0.1",
        "SEVENFOLD_MODELS": str(tmp_path),
    }


def test_the_address_of_a_service_is_replaced_if_there_is_one():
    services = {("server.place.svc", 80): "http", ("server.place.svc", 9090): "admin"}
    ports = {"http": 1, "admin": 2}

    assert replace_service(["smoke", "--url", "http://server.place.svc:80"], services, ports) == [
        "smoke",
        "--url",
        "http://127.0.0.1:1",
    ]
    with pytest.raises(ClusterError, match="not an address of a Service"):
        replace_service(["http://server.place.svc:81"], services, ports)


def test_the_exit_status_of_a_command_becomes_the_phase_of_its_pod():
    assert finished_status("smoke", 0)["phase"] == "Succeeded"
    assert finished_status("smoke", 3)["phase"] == "Failed"


def test_the_pod_of_the_control_is_privileged():
    spec = deployment_of(bad_pod()["spec"])["spec"]["template"]["spec"]

    assert spec["containers"][0]["securityContext"]["privileged"]


def test_the_command_line_explains_itself():
    command = [sys.executable, "-m", "tests.cluster", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0
    assert "--only" in done.stdout
