import json

import pytest

from training.reporting import run_folder

SETTINGS = {"recipe": "pets", "epochs": 14, "rate": 0.002, "seeds": 1, "layers": ["256", "128"], "parameters": "0a"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs" / "pets"


def start(root, *, epochs=0, phases=(), done=False, **changed):
    """Create a run with so many epochs done, and return its folder."""
    folder = run_folder.find_or_create(root, SETTINGS | changed, "never")
    for name, count in (("seed-0", epochs), *phases):
        if count:
            (folder / name).mkdir()
            (folder / name / "history.json").write_text(json.dumps([{}] * count))
    if done:
        run_folder.mark_done(folder, {"accuracy": 0.9})
    return folder


def describe(root, resume="auto", **changed):
    return run_folder.describe_start(root, SETTINGS | changed, resume, 14)


def test_the_first_run_starts_without_a_word(root):
    assert describe(root) == ""


def test_resuming_says_how_much_is_done(root):
    folder = start(root, epochs=3)

    assert describe(root) == f"Resuming the run {folder}: 3 of 14 epochs are done."
    assert run_folder.find_or_create(root, SETTINGS, "auto") == folder


def test_epochs_of_all_seeds_count(root):
    folder = start(root, epochs=3, phases=(("seed-1", 2),), seeds=2)

    assert describe(root, seeds=2) == f"Resuming the run {folder}: 5 of 28 epochs are done."


def test_phases_that_came_before_are_named(root):
    folder = start(root, phases=(("language-model", 1), ("fine-tune", 2)))

    assert describe(root) == (
        f"Resuming the run {folder}: 0 of 14 epochs are done, after 1 of language-model and 2 of fine-tune."
    )


def test_resuming_before_the_first_epoch_says_so(root):
    folder = start(root)

    assert describe(root) == f"Resuming the run {folder}, of which no epoch is done."


def test_resuming_a_finished_run_says_that_it_is_written_again(root):
    folder = start(root, epochs=14, done=True)

    assert describe(root, "always") == f"The run {folder} is finished; its report (and model) is written again."


def test_a_finished_run_that_is_kept_is_not_said_to_be_written_again(root):
    folder = start(root, epochs=14, done=True)

    assert describe(root, "keep") == f"The run {folder} is finished."


def test_a_new_run_beside_a_finished_one_with_the_same_settings_says_so(root):
    folder = start(root, epochs=14, done=True)

    assert (
        describe(root) == f"A new run: {folder} has these settings and is finished; --resume writes its report again."
    )


def test_a_new_run_beside_an_unfinished_one_names_the_settings_that_differ(root):
    folder = start(root, epochs=3)

    assert describe(root, rate=0.004, layers=[]) == (
        f"A new run: the last one, {folder}, has other settings (rate 0.002 → 0.004, layers 256,128 → none)."
    )


def test_a_new_run_on_other_data_says_so(root):
    folder = start(root, epochs=3)

    assert describe(root, parameters="1b", new=1) == (
        f"A new run: the last one, {folder}, has other settings (other labels, columns or sizes of the task, "
        "new unknown → 1)."
    )


def test_a_run_that_recorded_less_is_not_said_to_be_of_other_data(root):
    start(root, epochs=3)

    assert "other settings (data that an older version of this program did not record)" in describe(root, data="1b")


def test_many_differences_are_counted(root):
    start(root, epochs=3)

    sentence = describe(root, **{f"option_{i}": i for i in range(6)})

    assert "option 3 unknown → 3 and 2 more)" in sentence


def test_a_finished_run_with_other_settings_is_not_mentioned(root):
    start(root, epochs=14, done=True)

    assert describe(root, rate=0.004) == ""


def test_a_fresh_run_starts_without_a_word(root):
    start(root, epochs=3)

    assert describe(root, "never") == ""


def test_publishing_takes_a_finished_run_that_was_not_published_and_no_other(root, tmp_path):
    folder = start(root, epochs=14, done=True)

    assert run_folder.find_or_create(root, SETTINGS, "publish") == folder
    assert describe(root, "publish") == f"The run {folder} is finished; its report (and model) is written again."
    run_folder.mark_published(folder, tmp_path / "models" / "pets" / "1")
    assert run_folder.find_or_create(root, SETTINGS, "publish") != folder
