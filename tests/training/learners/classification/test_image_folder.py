"""Folders of classes as people have them: what is read as meant, refused, or said."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.training.conftest import draw_image
from training.core.errors import CannotTrain
from training.data.folders import list_files
from training.data.images import describe_unread_images, filter_readable, image_endings, image_files
from training.learners.classification.image_folder import read_folder
from training.learners.classification.learner import ClassificationLearner, describe_failures


def read(folder, **changes):
    return read_folder(folder, **{"unreadable": "refuse", "valid_fraction": 0.25, "size": 32} | changes)


def count(data):
    return len(data.train) + len(data.validation)


def draw(seed):
    return draw_image((90, 120, 30), seed)


@pytest.mark.parametrize("ending", ["gif", "tif", "TIFF", "jfif", "JPEG", "Webp", "bmp"])
def test_every_format_that_the_service_reads_is_trained_on(photos, ending):
    folder = photos(count=4)
    kind = {"tif": "tiff", "jfif": "jpeg"}.get(ending.lower(), ending)
    draw(7).save(folder / "red" / f"other.{ending}", format=kind)

    data = read(folder)

    assert count(data) == 9
    assert data.warnings == ()


def test_an_image_named_after_another_format_is_read_and_said(photos):
    folder = photos(count=4)
    for number in range(3):
        draw(number).save(folder / "red" / f"other{number}.jpg", format="png")

    data = read(folder)

    assert count(data) == 11
    assert data.warnings == (
        "Images were read by their content where their ending tells another format: 3 .jpg (as PNG).",
    )


def test_photos_in_heic_without_its_decoder_are_counted_with_the_cure(tmp_path):
    for name in ("a.HEIC", "b.heic", "c.jpg", "d.dng", "e.pdf"):
        (tmp_path / name).write_bytes(b"x")

    listing = list_files(tmp_path, image_endings(heic=False))

    assert [path.name for path in listing.files] == ["c.jpg"]
    assert describe_unread_images(listing) == [
        "2 images ending in .heic were not read: install the package pillow-heif (the extra 'heif'), or convert them "
        "to JPEG.",
        "1 image ending in .dng was not read: convert it to JPEG or PNG.",
        "1 file ending in .pdf was left out.",
    ]


def test_photos_in_heic_are_read_where_its_decoder_is_installed(photos):
    pillow_heif = pytest.importorskip("pillow_heif")
    folder = photos(count=4)
    pillow_heif.from_pillow(draw(3)).save(folder / "red" / "IMG_1.HEIC")

    assert count(read(folder)) == 9


def test_checkpoints_within_a_class_are_left_out_and_counted(photos):
    folder = photos(count=4)
    (folder / "red" / ".ipynb_checkpoints").mkdir()
    draw(3).save(folder / "red" / ".ipynb_checkpoints" / "x-checkpoint.png")

    data = read(folder)

    assert count(data) == 8
    assert data.warnings == ("1 file in hidden folders (.ipynb_checkpoints) was left out.",)


def test_thumbnails_of_network_storage_are_no_class_and_are_counted(photos):
    folder = photos(count=4)
    (folder / "@eaDir" / "000.png").mkdir(parents=True)
    draw(3).save(folder / "@eaDir" / "000.png" / "SYNOPHOTO_THUMB_M.jpg")

    data = read(folder)

    assert data.labels == ("green", "red")
    assert data.warnings == ("1 file in folders that other programs made (@eaDir) was left out.",)


def test_images_beside_the_classes_and_folders_without_images_are_named(photos):
    folder = photos(count=4)
    draw(3).save(folder / "stray.png")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.docx").write_bytes(b"x")

    data = read(folder)

    assert data.labels == ("green", "red")
    assert data.warnings == (
        "2 files were left out: 1 ending in .docx, 1 beside the folders that are read (stray.png).",
        "The folder 'notes' of photos has no image that is read, so no class is named so.",
    )


def test_folders_within_a_class_count_for_it_and_are_named(photos):
    folder = photos(count=4)
    (folder / "red" / "dark").mkdir()
    draw(3).save(folder / "red" / "dark" / "a.png")

    data = read(folder)

    assert count(data) == 9
    assert data.warnings == ("Files in folders within a class count for the class: red/dark.",)


def test_a_folder_beside_the_split_is_said_not_to_be_read(photos, tmp_path):
    photos("all/Train", count=4)
    photos("all/TEST", count=2, first=50)

    data = read(tmp_path / "all")

    assert data.labels == ("green", "red")
    assert data.warnings == ("Only the folder 'Train' was read, not 'TEST'.",)


def test_the_only_folder_of_an_archive_with_class_folders_is_entered(photos, tmp_path):
    photos("outer/inner", count=4)
    (tmp_path / "outer" / "paper.pdf").write_bytes(b"x")

    data = read(tmp_path / "outer")

    assert data.labels == ("green", "red")
    assert data.warnings == ("1 file ending in .pdf was left out.",)


def test_a_class_of_one_image_is_used_for_training_only_and_named(photos):
    folder = photos(count=4)
    (folder / "axolotl").mkdir()
    draw(3).save(folder / "axolotl" / "a.png")

    data = read(folder)

    assert [image.path.name for image in data.train if image.label == 0] == ["a.png"]
    assert data.warnings == (
        "Class 'axolotl' has one image; it is used for training only, so nothing says how well it is recognised.",
    )


def test_classes_whose_images_are_copies_of_one_are_named(photos):
    folder = photos(count=4)
    for name, seed in (("axolotl", 3), ("newt", 4)):
        (folder / name).mkdir()
        for number in range(3):
            draw(seed).save(folder / name / f"{number}.png")

    (warning,) = read(folder).warnings

    assert warning.startswith("Classes 'axolotl' and 'newt' have copies of one image each; they are used for training")


def test_a_class_that_the_validation_folder_lacks_is_named(photos, tmp_path):
    photos("all/train", count=4, classes=("red", "green", "blue"))
    photos("all/val", count=2, first=50)

    (warning,) = read(tmp_path / "all").warnings

    assert warning.startswith("Class 'blue' has no validation image; it is used for training only")


def test_two_images_with_none_to_validate_on_are_refused(photos):
    with pytest.raises(CannotTrain, match="2 images of 2 classes, but no class has two that differ"):
        read(photos(count=1))


def test_a_class_without_training_images_of_its_own_is_refused(photos, tmp_path):
    photos("all/train", count=4)
    photos("all/val", count=2, first=50)
    shutil.copytree(tmp_path / "all/train/red", tmp_path / "all/val/red", dirs_exist_ok=True)
    with pytest.raises(CannotTrain, match="Nothing is left to train on for the class 'red'"):
        read(tmp_path / "all")


def test_folders_that_differ_only_in_case_are_one_class_with_a_sentence(photos, tmp_path):
    folder = photos(count=4)
    shutil.copytree(photos("more", count=3, first=50) / "red", folder / "Red")

    data = read(folder)

    assert data.labels == ("green", "red")
    assert count(data) == 11
    assert data.warnings == (
        "Labels that differ only in case or spaces are read as one: 'Red' (3), 'red' (4) as 'red'.",
    )


def test_folders_of_letters_and_truth_values_are_classes_of_their_own(tmp_path):
    for number, name in enumerate(("a", "A", "yes", "true", "no")):
        (tmp_path / name).mkdir()
        for seed in range(2):
            draw(10 * number + seed).save(tmp_path / name / f"{seed}.png")

    data = read(tmp_path)

    assert data.labels == ("A", "a", "no", "true", "yes")
    assert data.warnings == ("Single letters that differ only in case are labels of their own: A/a.",)


def test_folders_that_are_spellings_of_one_class_are_refused(photos):
    folder = photos(count=4)
    shutil.rmtree(folder / "green")
    shutil.copytree(folder / "red", folder / "Red")

    with pytest.raises(CannotTrain, match=r"one class only, 'Red'; .* 'Red' \(4\), 'red' \(4\) as 'Red'"):
        read(folder)


def test_a_class_of_the_validation_folder_in_another_case_is_the_same(photos, tmp_path):
    photos("all/train", count=4)
    (photos("all/val", count=2, first=50) / "red").rename(tmp_path / "all" / "val" / "Red")

    data = read(tmp_path / "all")

    assert data.labels == ("green", "red")
    assert len(data.validation) == 4
    assert data.warnings[0].endswith("'Red' (2), 'red' (4) as 'red'.")


def test_a_class_of_the_validation_folder_with_another_name_is_refused(photos, tmp_path):
    photos("all/train", count=4)
    (photos("all/val", count=2, first=50) / "red").rename(tmp_path / "all" / "val" / "Reds")

    with pytest.raises(CannotTrain, match=r"'Reds' is in .*Did you mean 'red'\?"):
        read(tmp_path / "all")


def test_images_that_are_in_two_classes_are_counted(photos):
    folder = photos(count=4)
    shutil.copy(folder / "red" / "000.png", folder / "green" / "again.png")

    (warning,) = read(folder).warnings

    assert warning == (
        "1 image looks the same in more than one class, such as again.png of 'green' and 000.png of 'red'."
    )


def test_many_unreadable_images_are_counted_in_one_sentence(photos):
    folder = photos(count=4)
    for number in range(9):
        (folder / "red" / f"broken{number}.jpg").write_bytes(b"")

    with pytest.raises(CannotTrain, match=r"9 images cannot be read, such as .*broken0\.jpg \(The image is empty\.\)"):
        read(folder)
    (warning,) = read(folder, unreadable="skip").warnings
    assert warning.startswith("9 images that cannot be read were skipped, such as ")


def test_what_the_decoder_ignores_is_said(tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 40), "teal").save(paths[-1], icc_profile=b"no profile")
    warnings = []

    filter_readable(paths, unreadable="refuse", size=32, warnings=warnings)

    assert len(warnings) == 1
    assert warnings[0].startswith("Of 2 of the images: ")
    assert "profile" in warnings[0]


def test_a_message_about_no_images_tells_what_lies_there_instead(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mov").write_bytes(b"x")

    with pytest.raises(CannotTrain, match=r"No images .* 2 files ending in \.mov were left out\."):
        read(tmp_path)


def test_image_files_lists_the_images_alone(photos):
    folder = photos(count=2, classes=("red",))
    (folder / "red" / "a.txt").write_text("x")

    assert [path.name for path in image_files(folder)] == ["000.png", "001.png"]


def test_the_summary_names_the_classes_and_counts_images(photos, tmp_path):
    settings, options = ClassificationLearner.default_settings, ClassificationLearner.default_options
    learner = ClassificationLearner(photos(count=8), settings, options, None)

    assert learner.data_summary().startswith("2 classes (green, red), 12 pictures to train on, 4 to validate: ")


def test_no_class_without_validation_images_is_called_the_weakest():
    matrix = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])  # Of the third class, there are none.

    assert describe_failures(matrix, ("cat", "dog", "axolotl"))[-1] == (
        "The weakest class is 'cat': the model finds 9 of its 10 images."
    )
