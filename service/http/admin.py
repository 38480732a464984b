"""Endpoints for operators: load, unload and promote versions while the server runs.

They are off unless the setting `admin` allows them, since whoever can reach the server could use them. No state is
kept: after a restart, the folder of models and the settings decide again.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Header, Path
from pydantic import BaseModel, Field

from service.errors import Forbidden, Unauthorized
from service.http.models import VersionState, version_state
from service.models.model import Entry
from service.models.repository import Repository

T = TypeVar("T")
Action = Literal["load", "unload", "promote"]


class ChangeModels(Protocol):
    """Runs a function that changes what is served, and waits for it."""

    def __call__(self, change: Callable[[], T], /) -> Awaitable[T]:
        """Return the function's result; it is run to its end even if the caller is cancelled."""
        ...


class Changed(BaseModel):
    """A version after a change, and which version is the default now."""

    model: str
    version: VersionState
    default: Annotated[str | None, Field(description="The version that answers requests which do not name one.")]


def admin_router(repository: Repository, change: ChangeModels, *, enabled: bool, token: str) -> APIRouter:
    """Return the endpoint.

    Args:
        repository: the models.
        change: runs what changes them.
        enabled: whether the server allows changes.
        token: what requests must send as their bearer token; empty for none.
    """
    router = APIRouter(prefix="/v1/models", tags=["operation"])

    @router.post(
        "/{name}/versions/{version}/{action}",
        summary="Load, unload or promote a version",
        include_in_schema=enabled,
    )
    async def change_version(
        name: Annotated[str, Path(description="The model's name.")],
        version: str,
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
        entry = await change(lambda: _apply(repository, action, name, version))
        default = repository.default_of(name)
        return Changed(
            model=name,
            version=version_state(entry),
            default=default.manifest.version if default else None,
        )

    return router


def _apply(repository: Repository, action: Action, name: str, version: str) -> Entry:
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
