"""A client of the Kubernetes API: plain JSON over HTTPS, without a model of any kind of object."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

Object = dict[str, Any]
_TIMEOUT_S = 30.0
_TOO_MANY = 429
_RETRY_S, _PATIENCE_S = 0.5, 60.0


class ApiError(Exception):
    """The API server rejected a request."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.reason = reason


@dataclass(frozen=True)
class Resource:
    """A kind as the API server serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool
    verbs: frozenset[str]

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the path of an object, or of the list of objects if no name is given."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "")


@dataclass
class Api:
    """A connection to the API server, authenticated by a token.

    Attributes:
        warnings: texts of the `Warning` headers of all responses since this list was last cleared.
    """

    url: str
    token: str
    ca: Path
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._client = httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=str(self.ca)),
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
        self._resources: dict[tuple[str, str], Resource] = {}
        self._namespaced: list[Resource] | None = None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def copy(self) -> "Api":
        """Return another connection to the same server, for another thread."""
        return Api(self.url, self.token, self.ca)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        media_type: str = "application/json",
    ) -> Any:
        """Return the JSON (or text) of a response. Raises ApiError if the status is 400 or above."""
        target = path + (f"?{urlencode(query)}" if query else "")
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": media_type} if content is not None else {}
        response = self._client.request(method, target, content=content, headers=headers)
        if response.status_code == _TOO_MANY and method == "GET":
            response = self._read_again(target, time.monotonic() + _PATIENCE_S)
        self.warnings += [parse_warning(text) for text in response.headers.get_list("Warning")]
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        answer = response.json() if is_json else response.text
        if response.status_code >= 400:
            status = answer if isinstance(answer, dict) else {"message": answer}
            raise ApiError(response.status_code, str(status.get("message", "")), str(status.get("reason", "")))
        return answer

    def _read_again(self, target: str, deadline: float) -> httpx.Response:
        """Read again until the API server has loaded a kind that was defined a moment ago, as it asks clients to."""
        while True:
            time.sleep(_RETRY_S)
            response = self._client.get(target)
            if response.status_code != _TOO_MANY or time.monotonic() > deadline:
                return response

    def resources(self) -> Iterator[Resource]:
        """Yield every kind that the API server serves, in its preferred version only."""
        groups = self.request("GET", "/apis")["groups"]
        versions = ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]
        for version in versions:
            yield from self._kinds_of(version)

    def namespaced_kinds(self) -> list[Resource]:
        """Return every kind of object that a namespace can hold. Read once: install custom kinds before."""
        if self._namespaced is None:
            self._namespaced = [kind for kind in self.resources() if kind.namespaced and "list" in kind.verbs]
        return self._namespaced

    def _kinds_of(self, version: str) -> list[Resource]:
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        kinds = [
            Resource(version, entry["kind"], entry["name"], entry["namespaced"], frozenset(entry["verbs"]))
            for entry in self.request("GET", root)["resources"]
            if "/" not in entry["name"]
        ]
        self._resources.update({(version, kind.kind): kind for kind in kinds})
        return kinds

    def resource(self, api_version: str, kind: str) -> Resource:
        """Return a kind. Raises ApiError if the API server does not serve it."""
        if (api_version, kind) not in self._resources:
            self._kinds_of(api_version)
        if (api_version, kind) not in self._resources:
            raise ApiError(404, f"the API server has no {kind} in {api_version}")
        return self._resources[api_version, kind]

    def create(self, item: Object, namespace: str = "", *, dry_run: bool = False) -> Object:
        """Create an object; an unknown or a duplicate field is an error. Raises ApiError."""
        resource = self.resource(item["apiVersion"], item["kind"])
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        place = item["metadata"].get("namespace", namespace)
        created: Object = self.request("POST", resource.path(place), item, query=query)
        return created

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object:
        """Return an object. Raises ApiError."""
        item: Object = self.request("GET", self.resource(api_version, kind).path(namespace, name))
        return item

    def find(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object, or None if there is none of that name."""
        try:
            return self.get(api_version, kind, namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, api_version: str, kind: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Return the objects of a kind, in one namespace or all, with these labels."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        query = {"labelSelector": selector} if selector else None
        items = self.request("GET", self.resource(api_version, kind).path(namespace), query=query)["items"]
        return [{"apiVersion": api_version, "kind": kind} | item for item in items]  # The server leaves them out.

    def patch(self, item: Object, patch: Any, *, subresource: str = "") -> Object:
        """Merge a patch into an object (RFC 7386). Raises ApiError."""
        metadata = item["metadata"]
        path = self.resource(item["apiVersion"], item["kind"]).path(metadata.get("namespace", ""), metadata["name"])
        suffix = f"/{subresource}" if subresource else ""
        patched: Object = self.request("PATCH", path + suffix, patch, media_type="application/merge-patch+json")
        return patched

    def delete(self, item: Object) -> None:
        """Delete an object. Raises ApiError."""
        metadata = item["metadata"]
        path = self.resource(item["apiVersion"], item["kind"]).path(metadata.get("namespace", ""), metadata["name"])
        self.request("DELETE", path)


def parse_warning(header: str) -> str:
    """Return the text of a `Warning` header, which reads: code, agent, quoted text."""
    _, _, text = header.partition('"')
    return text.rpartition('"')[0].replace('\\"', '"') or header
