from PIL import Image

from training.recipes.cards import copy_tagged_images


def test_boxes_of_the_repository_become_a_table_of_tags(tmp_path):
    images = tmp_path / "repository" / "images"
    (images / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "train" / "IMG_1.JPG", "JPEG")
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\nIMG_1.JPG,8,8,queen,0,0,2,2\nIMG_1.JPG,8,8,ace,3,3,5,5\n"
    (images / "train_labels.csv").write_text(rows)
    (tmp_path / "tagged").mkdir()

    copy_tagged_images(tmp_path / "repository", tmp_path / "tagged")

    assert (tmp_path / "tagged" / "labels.csv").read_text().splitlines() == ["image_name,tags", "IMG_1,ace queen"]
    assert (tmp_path / "tagged" / "train" / "IMG_1.JPG").is_file()
