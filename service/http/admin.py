"""Endpoints for operators: load, unload and promote versions while the server runs.

They are off unless the setting `admin` allows them, since whoever can reach the server could use them. No state is
kept: after a restart, the folder of models and the settings decide again.
"""

import hmac
import logging
from collections.abc import Awaitable
from typing import Annotated, Literal, Protocol
from urllib.parse import urlsplit

from fastapi import APIRouter, Header, Path, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from service.errors import Forbidden, Unauthorized
from service.http.models import VersionState, version_state
from service.http.openapi import ErrorResponse
from service.models.model import Entry
from service.models.repository import Repository

_LOG = logging.getLogger(__name__)
_ERRORS = {
    401: "The token is missing or wrong",
    403: "The server does not allow changes, or the request comes from a page of another site",
    404: "Unknown model or version",
    409: "The model is pinned to a version by a setting",
    422: "The version cannot be served; what was served stays. Or the action is unknown",
}
CHANGES = "/v1/models/[^/]+/versions/[^/]+/(load|unload|promote)"
"""The paths of these endpoints, as a regular expression."""
Action = Literal["load", "unload", "promote"]


class ChangeVersion(Protocol):
    """Loads, unloads or promotes a version, in all processes of the server."""

    def __call__(self, action: Action, name: str, version: str, /) -> Awaitable[Entry]:
        """Wait for it, and return the version. It is done to its end even if the caller is cancelled."""
        ...


class Changed(BaseModel):
    """A version after a change, and which version is the default now."""

    model: str
    version: VersionState
    default: Annotated[str | None, Field(description="The version that answers requests which do not name one.")]


def admin_router(repository: Repository, change: ChangeVersion, *, enabled: bool, token: str) -> APIRouter:
    """Return the endpoint.

    Args:
        repository: the models.
        change: changes them.
        enabled: whether the server allows changes.
        token: what requests must send as their bearer token; empty for none.
    """
    router = APIRouter(prefix="/v1/models", tags=["operation"])
    # It only documents the token, so that /docs can send it; `_authorise` checks it.
    documented_token = Security(HTTPBearer(auto_error=False, description="The token of the setting --admin-token."))

    @router.post(
        "/{name}/versions/{version}/{action}",
        summary="Load, unload or promote a version",
        include_in_schema=enabled,
        dependencies=[documented_token] if token else [],
        responses={status: {"model": ErrorResponse, "description": text} for status, text in _ERRORS.items()},
    )
    async def change_version(
        name: Annotated[str, Path(description="The model's name.")],
        version: Annotated[str, Path(description="The version, a whole number.")],
        action: Annotated[
            Action,
            Path(
                description="load: serve it in addition, under its own path; unload: do not serve it; promote: let it "
                "answer requests that name no version."
            ),
        ],
        authorization: Annotated[str, Header(include_in_schema=False)] = "",
        origin: Annotated[str, Header(include_in_schema=False)] = "",
        host: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Changed:
        """Wait for the outcome and return it. The choice holds until the next one, or until the server stops."""
        _authorise(authorization, origin, host, enabled=enabled, token=token)
        entry = await change(action, name, version)
        model = repository.default_of(name)
        default = model.manifest.version if model else None
        fields = {"model": name, "version": version, "action": action, "default": default}
        _LOG.info("version changed by an operator", extra={"fields": fields})
        return Changed(model=name, version=version_state(entry), default=default)

    return router


def apply_change(repository: Repository, action: Action, name: str, version: str) -> Entry:
    """Change a version, in the loader's thread."""
    if action == "load":
        return repository.load_version(name, version)
    if action == "unload":
        return repository.unload_version(name, version)
    return repository.promote_version(name, version)


def _authorise(authorization: str, origin: str, host: str, *, enabled: bool, token: str) -> None:
    """Raise Forbidden or Unauthorized unless the request may change what is served."""
    if not enabled:
        raise Forbidden("This server does not allow clients to change versions. Start it with --admin to allow it.")
    scheme, _, sent = authorization.partition(" ")
    is_bearer = scheme.lower() == "bearer"
    if token and not (is_bearer and hmac.compare_digest(sent.strip().encode(), token.encode())):
        raise Unauthorized("Send the token of --admin-token as 'Authorization: Bearer TOKEN'.")
    if origin and urlsplit(origin).netloc != host:  # A page of another site, in the browser of an operator.
        raise Forbidden("Versions cannot be changed by pages of other sites.")
