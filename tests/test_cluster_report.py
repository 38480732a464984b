"""The report of a run."""

import pytest

from tests.cluster.processes import ClusterError
from tests.cluster.report import BEGIN, END, Recorder, Step, StepFailed, section, shorten, table, with_section

MACHINE = {"when": "2026-01-02T03:04:05+00:00", "commit": "abc1234", "cores": 2}
VERSIONS = [{"kubernetes": "1.33.4", "etcd": "3", "kwok": "0", "kubectl": "1", "helm": "v4", "crds": "a, b"}]


def step(case, name, **options):
    return Step(case, "v4", name, **({"ok": True, "kubernetes": "1.33.4", "seconds": 1.0} | options))


def test_a_case_that_failed_has_dashes_for_the_steps_that_were_left_out():
    steps = [step("one", "validate"), step("one", "install"), step("two", "validate", ok=False)]

    lines = table(steps).splitlines()

    assert lines == [
        "| case | Kubernetes | Helm | validate | install | seconds |",
        "|---|---|---|---|---|---|",
        "| one | 1.33.4 | v4 | yes | yes | 2 |",
        "| two | 1.33.4 | v4 | **no** | – | 1 |",
    ]


def test_cases_with_other_steps_get_a_table_of_their_own():
    assert table([step("one", "validate"), step("bad", "refused")]).count("| case |") == 2


def test_the_section_counts_steps_and_says_why_one_failed():
    text = section(
        [step("one", "validate"), step("one", "install", ok=False, detail="no | room")], VERSIONS, MACHINE, 9
    )

    assert "1 of 2 steps ended well" in text
    assert "- one, install: no / room" in text


def test_the_section_replaces_what_is_between_the_marks():
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    assert with_section(document, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_an_empty_document_gets_the_marks():
    assert with_section("", "new").count(BEGIN) == 1


@pytest.mark.parametrize("document", ["no marks", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_document_without_a_place_is_an_error(document):
    with pytest.raises(ClusterError, match="once each"):
        with_section(document, "new")


def test_a_failed_step_is_recorded_with_its_reason(capsys):
    recorder = Recorder()

    with pytest.raises(StepFailed), recorder.step("one", "v4", "install"):
        raise ClusterError("no room")

    assert [(each.ok, each.detail) for each in recorder.steps] == [(False, "no room")]
    assert "FAILED" in capsys.readouterr().out


def test_the_next_case_is_run_after_one_that_failed(capsys):
    recorder = Recorder()

    with recorder.case("one", "v4"), recorder.step("one", "v4", "install"):
        raise ClusterError("no room")
    with recorder.case("two", "v4"):
        raise KeyError("name")

    assert [(each.case, each.name, each.detail) for each in recorder.steps] == [
        ("one", "install", "no room"),
        ("two", "set up", "KeyError('name')"),
    ]


def test_long_text_becomes_one_line():
    assert shorten("a\n  b" + "c" * 1000).startswith("a bccc")
    assert len(shorten("c" * 1000)) == 300
