"""The endpoints that describe models."""

from pathlib import Path

import pytest

from tests.model_folders import edit_manifest, publish, update_checksums
from tests.service.conftest import Running, Start
from tests.tiny.tabular import CREDIT, credit_graph


def test_a_model_is_described_with_card_labels_and_a_working_example(server: Running) -> None:
    details = server.client.get("/v1/models/colours").json()

    assert details["labels"] == ["red", "green", "blue"]
    assert details["card"] == "# colours\n"
    assert details["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [32, 32, 3]}]
    assert server.client.post("/v1/models/colours/predict", json=details["example"]).status_code == 200
    by_version = server.client.get("/v1/models/colours/versions/1").json()
    # Latencies change with every request; they are measured for sizes up to the batch limit.
    curve = by_version.pop("curve")
    assert {point["size"] for point in details.pop("curve")} == {point["size"] for point in curve} >= {1}
    assert by_version == details


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/jane/data/loans.csv", "loans.csv"),
        ("~/data/loans/", "loans"),
        ("../loans", "loans"),
        (r"C:\Users\jane\loans.csv", "loans.csv"),
        ("Adult census income", "Adult census income"),
        ("CIFAR-10/100", "CIFAR-10/100"),
    ],
)
def test_the_folders_of_the_machine_that_trained_are_not_shown(
    tmp_path: Path, start: Start, name: str, shown: str
) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    (folder / "README.md").write_text(f"# Loans\n\nTrained on {name}.\n")
    update_checksums(folder)
    data = {"name": name, "licence": "unknown", "address": f"file://{name}"}
    edit_manifest(folder, data=data)
    server = start(models=tmp_path)

    details = server.client.get("/v1/models/credit").json()

    assert (details["data"]["name"], details["data"]["address"]) == (shown, None)
    assert details["card"] == f"# Loans\n\nTrained on {shown}.\n"
