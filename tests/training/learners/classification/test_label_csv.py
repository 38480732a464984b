import gzip

import pytest
from PIL import Image

from training.core.errors import CannotTrain
from training.data.delimited import RECOGNISED, CsvFormat
from training.learners.classification.label_csv import find_table, read_tags


def read(folder, form=RECOGNISED, unreadable="refuse"):
    return read_tags(find_table(folder), form, unreadable=unreadable, valid_fraction=0.25, size=32)


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
        ("imagge,tags\np00,left\n", "no column image_name; its columns are imagge, tags. Rename 'imagge' to 'image_n"),
        ("filname,labl\np00,left\n", "Rename 'filname' to 'image_name'. Rename 'labl' to 'tags'"),
        ("id,breed\np00,left\n", "are id, breed. Rename the one that names the images to 'image_name'"),
        ("image_id,file,tags\n1,p00,left\n", "several that may be meant: 'image_id' and 'file'. Rename one of them to"),
        ("image,left,right\np00,1,2\np01,0,1\n", "no column tags.* or have a column each with 1 or 0 in every row"),
        ("image_name,tags\np00,left\nghost,a\ngone,b\n", "2 of 3 rows name no image that is read; leave them out with"),
        ("image_name,tags\nghost,left\ngone,left\n", "None of its 2 rows names an image"),
        ("image_name,tags,Tags\np00,left,left\n", "has 2 columns 'tags'; keep one"),
        ("image_name,tags\np00,left,right\n", "line 2 has more cells than the first line .* in quotation marks"),
        ('image_name,tags\np00,"left,right"\np01,left;right\n', "separated by commas and by semicolons"),
        ("image_name,tags\nP00.PNG,left\n", r"no image 'P00.PNG' .* Did you mean 'p00.png'\?"),
        ("image_name,tags\n,left\n", "line 2: the image's name is empty"),
        ("image_name,tags\np00,left\np01,right\n", "At least two images that differ are needed for one of the tags"),
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


def test_summary_of_a_table_states_its_separators_and_images_that_it_does_not_list(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    lines = [f"{name};{tags.replace(' ', ',')}" for name, tags in tag_rows(20)]
    (folder / "labels.csv").rename(folder / "Labels.CSV")
    (folder / "Labels.CSV").write_text("\n".join(["Image_Name; Tags", *lines]))

    table = read(folder)

    assert table.labels == ("left", "right")
    assert table.warnings == (
        "The columns of Labels.CSV are separated by semicolons.",
        "Tags were separated at commas, not at spaces: 5 images have some.",
        "4 of 24 images are not listed in Labels.CSV: left out.",
        "5 of 20 images have no tag, and are learnt as examples of none.",
    )


def test_tags_that_differ_only_in_case_are_one_and_named(tagged_folder, tag_rows):
    rows = [(name, tags.replace("left", "Left") if i < 9 else tags) for i, (name, tags) in enumerate(tag_rows())]

    table = read(tagged_folder(rows))

    assert table.labels == ("left", "right")
    assert table.targets((*table.train, *table.validation)).sum() == sum(len(tags.split()) for _, tags in tag_rows())
    assert any(
        warning.startswith("Labels that differ only in case or spaces are read as one: 'Left' (")
        for warning in table.warnings
    )


def test_encoding_and_separator_of_a_table_can_be_named(tagged_folder, tag_rows):
    folder = tagged_folder([(name, tags.replace("left", "fähre")) for name, tags in tag_rows()])
    text = (folder / "labels.csv").read_text("utf-8").replace(",", "/")
    (folder / "labels.csv").write_bytes(gzip.compress(text.encode("cp1252")))

    table = read(folder, CsvFormat("/", "cp1252"))

    assert table.labels == ("fähre", "right")
    assert table.warnings[:2] == (
        "labels.csv was read as CP1252.",
        "The columns of labels.csv are separated by '/'.",
    )


def test_lines_are_counted_as_an_editor_does(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    (folder / "labels.csv").write_text('sep=,\n\nimage_name,tags\np00,"left\nright"\n,,\nghost,left\n')

    with pytest.raises(CannotTrain, match="line 7: there is no image 'ghost'"):
        read(folder)


def test_table_in_utf_16_is_read_and_paths_of_windows_are_understood(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    text = (folder / "labels.csv").read_text().replace("p03,", "images\\p03.png,")
    (folder / "labels.csv").write_text(text, "utf-16")

    table = read(folder)

    assert len(table.train) + len(table.validation) == 24
    assert table.warnings[0] == "labels.csv was read as UTF-16."


def test_image_in_a_format_that_is_not_read_is_named_as_such(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    (folder / "images" / "p03.png").rename(folder / "images" / "p03.dng")

    with pytest.raises(CannotTrain, match=r"line 5: p03\.dng is not in a format that is read"):
        read(folder)


def test_thumbnails_with_the_names_of_images_do_not_make_them_ambiguous(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    (folder / "@eaDir").mkdir()
    Image.new("RGB", (40, 32), "teal").save(folder / "@eaDir" / "p00.png")

    table = read(folder)

    assert len(table.train) + len(table.validation) == 24
    assert "1 file in folders that other programs made (@eaDir) was left out." in table.warnings


def test_data_that_is_not_there_has_no_table(tmp_path):
    assert find_table(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "columns",
    [("image", "labels"), ("Filename", "Label"), ("img", "classes"), ("File Name", "choice"), ("path", "tag")],
)
def test_other_usual_names_of_the_columns_are_read_and_named(tagged_folder, tag_rows, columns):
    table = read(tagged_folder(tag_rows(), columns))

    assert table.labels == ("left", "right")
    assert table.warnings[:2] == (
        f"The images are named in the column '{columns[0]}' of labels.csv, their tags in '{columns[1]}'.",
        "Tags were separated at spaces: 'left right' is 2 tags. If it is one, write it with underscores.",
    )


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", "-1")])
def test_tags_with_a_column_each_are_read_and_other_columns_named(tagged_folder, tag_rows, yes, no):
    folder, rows = tagged_folder(tag_rows()), tag_rows()
    lines = [f"{name}.png,640,{yes if 'left' in tags else no},{yes if 'right' in tags else no}" for name, tags in rows]
    (folder / "labels.csv").write_text("\n".join(["filename,width,Left side,right", *lines]))

    table = read(folder)

    assert table.labels == ("Left side", "right")
    assert {image.path.stem: len(image.tags) for image in (*table.train, *table.validation)} == {
        name: len(tags.split()) for name, tags in rows
    }
    assert table.warnings[:2] == (
        "2 columns of labels.csv are tags ('Left side', 'right'): an image has those in whose columns it has a 1.",
        "Column 'width' of labels.csv: not read.",
    )


def test_rows_that_name_no_image_can_be_skipped_and_are_counted(tagged_folder, tag_rows):
    folder = tagged_folder(tag_rows())
    with (folder / "labels.csv").open("a") as file:
        file.write("ghost,left\ngone,left\n")

    table = read(folder, unreadable="skip")

    assert len(table.train) + len(table.validation) == 24
    assert table.warnings[0].startswith(
        "2 of 26 rows name no image that is read: left out, such as line 26: there is no image 'ghost' in"
    )


def test_names_and_lists_of_tags_of_label_studio_are_read_and_said_so(tagged_folder, tag_rows):
    folder, rows = tagged_folder(tag_rows()), tag_rows()
    choices = {"left right": '"{""choices"":[""left"",""right""]}"'}
    lines = [f"/data/upload/1/0a1b2c{i:02}-{name}.png,{choices.get(tags, tags)}" for i, (name, tags) in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join(["image,choice", *lines]))

    table = read(folder)

    assert table.labels == ("left", "right")
    assert len(table.train) + len(table.validation) == 24
    assert table.warnings[1:3] == (
        'Tags were read from lists, as in {"choices":["left","right"]}: 6 images have one.',
        "24 images were found without the folder and the prefix of an upload to Label Studio: "
        "'/data/upload/1/0a1b2c00-p00.png' is p00.png.",
    )
