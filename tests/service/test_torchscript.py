"""A server with `--backend torchscript` serves model.ts, and no other server opens it."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the package torch is not installed")

from service.doctor import run_checks  # noqa: E402
from service.settings import Settings  # noqa: E402
from tests.images import encode_image, red_image  # noqa: E402
from tests.model_folders import publish, update_checksums  # noqa: E402
from tests.service.backends.test_torchscript import file_of  # noqa: E402
from tests.service.conftest import Running, running  # noqa: E402
from tests.tiny.classification import COLOURS, colours_graph  # noqa: E402


class Colours(torch.nn.Module):
    """The same function as `colours_graph`."""

    def forward(self, image):
        activation_map = image.permute(0, 3, 1, 2).float() / 25
        return activation_map.mean(dim=(2, 3)).softmax(dim=1), activation_map


def publish_colours(root: Path, *, onnx: bytes = b"", torchscript: bytes = b"") -> Path:
    """Publish the model, and replace its files by these if they are given."""
    folder = publish(root, "colours", COLOURS, colours_graph())
    for name, content in (("model.onnx", onnx), ("model.ts", torchscript)):
        if content:
            (folder / name).write_bytes(content)
    update_checksums(folder)
    return folder


def answer_of(server: Running) -> tuple[int, str]:
    content = {"Content-Type": "image/png"}
    response = server.client.post("/v1/models/colours/predict", content=encode_image(red_image()), headers=content)
    return response.status_code, response.json().get("label", "")


def test_torchscript_is_served_in_place_of_the_onnx_file(tmp_path: Path) -> None:
    folder = publish_colours(tmp_path, onnx=b"not a graph", torchscript=file_of(Colours(), example_images()))

    with running(Settings(models=tmp_path, device="cpu", backend="torchscript")) as server:
        assert answer_of(server) == (200, "red")
        metrics = server.client.get("/metrics").text

    (info,) = [line for line in metrics.splitlines() if line.startswith("sevenfold_model_info{")]
    assert 'provider="TorchScript"' in info
    assert 'precision="' in info
    assert (folder / "model.ts").is_file()


def example_images() -> torch.Tensor:
    return torch.zeros(2, COLOURS.size, COLOURS.size, 3, dtype=torch.uint8)


def test_a_version_without_torchscript_is_not_served_and_says_why(tmp_path: Path) -> None:
    publish_colours(tmp_path)

    with running(Settings(models=tmp_path, device="cpu", backend="torchscript")) as server:
        (model,) = server.client.get("/v1/models").json()["models"]
        status, _ = answer_of(server)

    assert status == 503
    assert "There is no model.ts. Publish the model with it" in str(model)


def test_torchscript_that_answers_otherwise_than_was_published_is_not_served(tmp_path: Path) -> None:
    class Reversed(Colours):
        def forward(self, image):
            return super().forward(image.flip(3))

    publish_colours(tmp_path, torchscript=file_of(Reversed(), example_images()))

    with running(Settings(models=tmp_path, device="cpu", backend="torchscript")) as server:
        (model,) = server.client.get("/v1/models").json()["models"]

    assert "does not reproduce its published answers" in str(model)


def test_a_server_does_not_open_torchscript_unless_a_setting_says_so(tmp_path: Path) -> None:
    publish_colours(tmp_path, torchscript=b"not a graph")

    with running(Settings(models=tmp_path, device="cpu")) as server:
        assert answer_of(server) == (200, "red")


@pytest.mark.parametrize(
    ("has_file", "level", "text"),
    [(True, "ok", "checksums right, loaded"), (False, "problem", "There is no model.ts")],
)
def test_the_doctor_checks_the_file_of_the_chosen_backend(
    tmp_path: Path, has_file: bool, level: str, text: str
) -> None:
    publish_colours(tmp_path, torchscript=file_of(Colours(), example_images()) if has_file else b"")
    flags = ["--models", str(tmp_path), "--port", "0", "--device", "cpu", "--backend", "torchscript"]

    checks = list(run_checks(flags, {}, load=True))

    (model,) = [check for check in checks if check.area == "models"]
    assert model.level == level
    assert text in model.text
    assert any(check.area == "device" and f"torch {torch.__version__}" in check.text for check in checks)
