"""How requests are batched, as a client sees it."""

from tests.service.http.conftest import RUN_S, URL, StartBlocked


def test_with_a_batch_delay_even_the_first_requests_share_a_batch(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_batch=2, max_delay_ms=60_000.0)
    server.unblock()

    responses = [server.submit(income) for income in (10.0, 20.0)]

    assert [response.result().status_code for response in responses] == [200, 200]
    assert [sorted(batch) for batch in server.device.batches] == [[10.0, 20.0]]


def test_the_reported_infer_time_covers_all_samples_of_a_request(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_batch=1)
    server.unblock()
    rows = [{"income": float(i), "debt": 5, "job": "baker"} for i in range(20)]

    answer = server.running.client.post(URL, json={"rows": rows})

    timing = {part.split(";")[0].strip(): part for part in answer.headers["server-timing"].split(",")}
    assert float(timing["infer"].partition("dur=")[2]) >= 20 * RUN_S * 1000
