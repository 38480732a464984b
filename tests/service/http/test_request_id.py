"""Request ids that clients send."""

import re

from tests.service.conftest import Running


def test_a_request_id_that_could_forge_a_log_line_is_replaced(server: Running) -> None:
    answer = server.client.get("/health/live", headers={"x-request-id": 'a"} {"level": "error'})

    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
