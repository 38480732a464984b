"""A server whose device is blocked, as in the tests of HTTP."""

from tests.service.http.conftest import start_blocked

__all__ = ["start_blocked"]
