import pytest

from tests.training.learners.super_resolution.scenes import draw_scene


@pytest.fixture
def sharp_folder(tmp_path):
    """Writes a folder of sharp images."""

    def make(*names, size=(120, 90), seed=0):
        folder = tmp_path / "sharp"
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_scene(*size, seed=seed + number).save(path)
        return folder

    return make
