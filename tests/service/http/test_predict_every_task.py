"""Statements about predictions that hold for every task; new tasks are included without being named here."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.settings import Settings
from tasks.contract import Limits
from tests.images import encode_image
from tests.model_folders import runner
from tests.service.conftest import Running, running
from tests.tiny.classification import TAGS
from tests.tiny.models import every_task, graph_of, publish_every_task

TASKS = every_task()
IMAGE_TASKS = [name for name, task in TASKS.items() if task.upload and task.upload.field == "image"]


@pytest.fixture(scope="module")
def every_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root: Path = tmp_path_factory.mktemp("every-model")
    publish_every_task(root)
    with running(Settings(models=root)) as started:
        yield started


@pytest.mark.parametrize("name", TASKS)
def test_the_server_answers_as_the_task_alone_does(every_model: Running, name: str) -> None:
    task, run = TASKS[name], runner(graph_of(name))

    for body in task.examples():
        answer = every_model.client.post(f"/v1/models/{name}/predict", json=body)

        assert answer.status_code == 200, answer.text
        fields = {key: value for key, value in answer.json().items() if key not in ("model", "version")}
        assert fields == task.answer(run, body).plain()


@pytest.mark.parametrize("name", TASKS)
def test_each_representation_is_selected_by_its_media_type(every_model: Running, name: str) -> None:
    task = TASKS[name]
    selected_by_accept = {field for representation in task.representations for field in representation.fields}
    body = {field: value for field, value in task.example().items() if field not in selected_by_accept}

    for representation in task.representations:
        answer = every_model.client.post(
            f"/v1/models/{name}/predict", json=body, headers={"accept": representation.media_type}
        )

        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == representation.media_type.partition(";")[0]
        assert answer.headers["x-model"] == f"{name}/1"
        if representation.file and representation.media_type.startswith("image/"):
            assert Image.open(io.BytesIO(answer.content)).format == representation.media_type[6:].upper()
        elif not representation.file:
            assert answer.json()["model"] == name


@pytest.mark.parametrize("name", TASKS)
def test_a_representation_that_the_task_lacks_is_rejected(every_model: Running, name: str) -> None:
    answer = every_model.client.post(
        f"/v1/models/{name}/predict", json=TASKS[name].example(), headers={"accept": "text/csv"}
    )

    assert answer.status_code == 406
    assert answer.json()["error"]["code"] == "not_acceptable"
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", TASKS)
def test_the_openapi_document_has_its_representations_and_a_working_example(every_model: Running, name: str) -> None:
    operation = every_model.client.get("/openapi.json").json()["paths"][f"/v1/models/{name}/predict"]["post"]

    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = every_model.client.post(f"/v1/models/{name}/predict", json=example)
    content = operation["responses"]["200"]["content"]
    assert set(content) == {representation.media_type for representation in TASKS[name].representations}
    assert answer.json() == content["application/json"]["example"]


IMAGES = {
    "one pixel": encode_image(Image.new("RGB", (1, 1), "red")),
    "panorama": encode_image(Image.new("RGB", (640, 32), "green")),
    "tall image": encode_image(Image.new("RGB", (20, 400), "blue")),
    "palette with transparency": encode_image(Image.new("RGBA", (50, 40), (0, 200, 0, 90)).quantize(16)),
    "grey": encode_image(Image.new("L", (33, 47), 90)),
    "CMYK JPEG": encode_image(Image.new("CMYK", (31, 57)), "JPEG"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_unusual_images_get_an_answer_of_their_own_size(every_model: Running, name: str, kind: str) -> None:
    task = TASKS[name]
    width, height = Image.open(io.BytesIO(IMAGES[kind])).size

    for representation in task.representations:
        answer = every_model.client.post(
            f"/v1/models/{name}/predict",
            content=IMAGES[kind],
            headers={"content-type": "image/png", "accept": representation.media_type},
        )

        assert answer.status_code == 200, answer.text
        if not representation.file and "width" in answer.json():
            scale = answer.json().get("scale", 1)
            assert (answer.json()["width"], answer.json()["height"]) == (width * scale, height * scale)


INVALID_IMAGES = {
    "AVIF": (encode_image(Image.new("RGB", (30, 30)), "AVIF"), 422),
    "truncated file": (encode_image(Image.effect_noise((200, 200), 90), "JPEG")[:2000], 422),
    "text": (b"no image", 422),
    "empty body": (b"", 400),
    "too many pixels": (encode_image(Image.new("1", (8000, 8000))), 413),
}


@pytest.mark.parametrize("kind", INVALID_IMAGES)
@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_an_invalid_image_is_rejected_with_a_message(every_model: Running, name: str, kind: str) -> None:
    content, status = INVALID_IMAGES[kind]

    answer = every_model.client.post(
        f"/v1/models/{name}/predict", content=content, headers={"content-type": "image/png"}
    )

    assert answer.status_code == status
    assert answer.json()["error"]["message"].endswith(".")


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_twelve_megapixels_are_answered_or_rejected_with_a_reason(every_model: Running, name: str) -> None:
    large = encode_image(Image.new("RGB", (4000, 3000), "red"), "JPEG")

    answer = every_model.client.post(
        f"/v1/models/{name}/predict", content=large, headers={"content-type": "image/jpeg"}
    )

    assert answer.status_code in (200, 413), answer.text
    if answer.status_code == 413:
        assert answer.json()["error"]["code"] == "input_too_large"


def test_multilabel_answers_have_the_labels_above_their_thresholds(every_model: Running) -> None:
    image = Image.new("RGB", (32, 32), (120, 118, 0))
    body = {"image": base64.b64encode(encode_image(image)).decode(), "all_labels": True, "heatmap": True}

    answer = every_model.client.post("/v1/models/tags/predict", json=body).json()

    assert [score["label"] for score in answer["labels"]] == ["red", "green"]
    assert [score["label"] for score in answer["others"]] == ["blue"]
    assert all(score["probability"] >= score["threshold"] for score in answer["labels"])
    assert answer["heatmap"]["label"] == "red"


def test_a_multilabel_answer_may_have_no_labels() -> None:
    task = TAGS
    assert all(threshold > 0 for threshold in task.thresholds)

    request = task.parse({"image": task.example()["image"]}, Limits())
    samples = task.preprocess(task.decode(request, Limits()))
    outputs = {"probabilities": samples.arrays["image"][:, 0, :3, 0] * 0.0, "activation_map": None}

    assert task.postprocess(outputs, samples, request).labels == []
