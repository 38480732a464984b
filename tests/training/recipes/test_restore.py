import pytest

from tests.training.learners.super_resolution.scenes import draw_scene
from training.core.errors import CannotTrain
from training.learners.super_resolution.dataset import read_sharp_folder
from training.recipes.restore import copy_sets


def write_images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_scene(seed=number).save(folder / name)
    return folder


@pytest.fixture
def read(tmp_path):
    """Reads what the recipe makes of a folder."""

    def prepare(source):
        (tmp_path / "prepared").mkdir()
        copy_sets(source, tmp_path / "prepared")
        return read_sharp_folder(tmp_path / "prepared", unreadable="refuse", valid_fraction=0.25, min_side=64)

    return prepare


def test_archive_of_the_mirror_has_two_training_sets_and_two_test_sets(read, tmp_path):
    train = (*(f"superres/BSDS200/{n}.jpg" for n in range(6)), "superres/T91/t1.png")
    set5 = (f"superres/Set5/image_SRF_2/a_SRF_2_{kind}.png" for kind in ("HR", "LR"))

    data = read(write_images(tmp_path / "data", *train, "superres/BSD100/x.png", *set5))

    assert {name: [path.name for path in paths] for name, paths in data.tests.items()} == {
        "BSD100": ["x.png"],
        "Set5": ["a_SRF_2_HR.png"],
    }
    names = [path.name for path in (*data.train, *data.validation)]
    assert sorted(names) == [*(f"{n}.jpg" for n in range(6)), "t1.png"]


def test_official_archive_has_one_training_set_and_one_test_set(read, tmp_path):
    root = "BSDS500-master/BSDS500/data/images"
    others = (f"{root}/{part}/9.jpg" for part in ("val", "test"))

    data = read(write_images(tmp_path / "data", *(f"{root}/train/{n}.jpg" for n in range(4)), *others))

    assert sorted(path.name for path in (*data.train, *data.validation)) == [f"{n}.jpg" for n in range(4)]
    assert list(data.tests) == ["BSD100"]


def test_any_other_folder_is_for_training(read, tmp_path):
    data = read(write_images(tmp_path / "data", "a/1.png", "b/1.png", "2.png"))

    assert sorted(path.name for path in (*data.train, *data.validation)) == ["1.png", "1.png", "2.png"]
    assert data.tests == {}


def test_a_file_is_refused(tmp_path):
    with pytest.raises(CannotTrain, match="is not a folder"):
        copy_sets(tmp_path / "missing.png", tmp_path)
