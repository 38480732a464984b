import pytest
from PIL import Image

from training.core.errors import CannotTrain
from training.learners.classification.label_csv import find_table, read_tags


def read(folder):
    return read_tags(find_table(folder), unreadable="refuse", valid_fraction=0.25, size=32)


@pytest.fixture
def split_rows(tag_rows):
    """Rows with a split column whose first six images are for validation."""
    return [(name, tags, "valid" if i < 6 else "train") for i, (name, tags) in enumerate(tag_rows())]


def test_planet_layout_is_read_with_each_tag_on_both_sides(tagged_folder, tag_rows):
    table = read(tagged_folder(tag_rows()))

    assert table.labels == ("left", "right")
    assert len(table.train) + len(table.validation) == 24
    assert table.targets(table.validation).sum(dim=0).min() >= 1
    assert table.targets(table.train).sum(dim=0).min() >= 1


def test_split_column_selects_the_validation_images(tagged_folder, split_rows):
    table = read(tagged_folder(split_rows, ("image_name", "tags", "split")))

    assert [image.path.stem for image in table.validation] == [f"p{i:02}" for i in range(6)]
    assert "column" in table.split


def test_names_may_have_extensions_and_folders_and_the_data_may_lie_in_a_subfolder(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    text = (folder / "labels.csv").read_text().replace("p03,", "p03.png,").replace("p04,", "images/p04.png,")
    (folder / "labels.csv").write_text(text)

    table = read(folder.parent)

    assert len(table.train) + len(table.validation) == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,tags\np00,left\n", "no column image_name; its columns are image, tags"),
        ("image_name,tags\n", "has no rows"),
        ("image_name,tags\np00,left\nghost,left\n", "line 3: there is no image 'ghost'"),
        ("image_name,tags\np00,left\np00,right\n", "line 3: p00 is already listed in line 2"),
        ("image_name,tags\np00,\np01,\n", "No image in .* has a tag"),
        ("image_name,tags,split\np00,left,train\np01,left,\n", "is empty for some images"),
        ("image_name,tags,split\np00,left,test\n", "'train' or 'validation', not 'test'"),
        ("image_name,tags,split\np00,left,train\np01,left,train\n", "leaves no images for validation"),
        ("image_name,tags\np00,left\np00.png,right\n", "line 3: p00.png is the same image as in line 2"),
        ("image_name,tags,split\np00,left,train\np01,,valid\n", "No validation image in .* has a tag"),
    ],
)
def test_invalid_table_is_refused_with_a_message(tagged_folder, tag_rows, text, message):
    folder = tagged_folder(tag_rows())
    (folder / "labels.csv").write_text(text)

    with pytest.raises(CannotTrain, match=message):
        read(folder)


def test_table_that_is_not_utf_8_is_refused(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    (folder / "labels.csv").write_bytes("image_name,tags\np00,f\xe4hre\n".encode("latin-1"))

    with pytest.raises(CannotTrain, match="is not UTF-8"):
        read(folder)


def test_name_that_matches_two_images_is_refused_and_their_paths_are_accepted(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    (folder / "more").mkdir()
    Image.new("RGB", (40, 32), "teal").save(folder / "more" / "p00.png")

    with pytest.raises(CannotTrain, match="p00 matches several images"):
        read(folder)
    text = (folder / "labels.csv").read_text().replace("p00,", "images/p00.png,")
    (folder / "labels.csv").write_text(text + "more/p00.png,left right\n")
    table = read(folder)

    assert len(table.train) + len(table.validation) == 25


def test_tag_without_validation_images_gives_a_warning(tagged_folder, split_rows):
    split_rows[10] = ("p10", "rare", "train")

    table = read(tagged_folder(split_rows, ("image_name", "tags", "split")))

    assert table.warnings == (
        "6 of 24 images have no tag, and are learnt as examples of none.",
        "The label 'rare' has no validation image.",
    )
