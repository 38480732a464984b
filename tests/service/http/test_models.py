"""The endpoints that describe models."""

from tests.service.conftest import Running


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
