import pytest

from tests.training.learners.segmentation.street_scenes import write_scenes


@pytest.fixture
def streets(tmp_path):
    """Writes a folder of images and masks."""
    return lambda count=8, *folders, root="streets", **options: write_scenes(
        tmp_path / root, count, *folders, **options
    )
