"""A request in the form that a server takes, and the answer in what it returns."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.peers import Protocol

_BOUNDARY = "----benchmark-7d1f0c"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_INPUT = "body"


@dataclass(frozen=True)
class Payload:
    """A POST request.

    Attributes:
        headers: header fields, among them the content type.
        body: the body.
    """

    headers: dict[str, str]
    body: bytes


def encode_payload(protocol: Protocol, content_type: str, content: bytes) -> Payload:
    """Return the request with which `content` is sent."""
    if protocol == "v2-binary":
        return _v2_binary(content)
    if protocol == "v2-json":
        return _v2_json(content_type, content)
    if content_type != "application/json":
        if protocol == "multipart":
            return _multipart(content_type, content)
        if protocol == "v1":
            instance = {"b64": base64.b64encode(content).decode()}
            return Payload({"Content-Type": "application/json"}, json.dumps({"instances": [instance]}).encode())
    return Payload({"Content-Type": content_type}, content)


def decode_answer(protocol: Protocol, headers: dict[str, str], body: bytes) -> Any:
    """Return the JSON of the answer; names of `headers` are in lower case.

    Raises ValueError if the body holds none, with what it holds instead.
    """
    try:
        if protocol == "v2-binary" and _HEADER_LENGTH.lower() in headers:
            length = int(headers[_HEADER_LENGTH.lower()])
            return json.loads(body[length + 4 :])  # Four bytes state the length of the only element.
        answer = json.loads(body)
        return json.loads(answer["outputs"][0]["data"][0]) if protocol in ("v2-binary", "v2-json") else answer
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(f"It answers {body[:200]!r}.") from None


def _multipart(content_type: str, content: bytes) -> Payload:
    head = (
        f"--{_BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{_INPUT}"; filename="file"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Payload({"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body)


def _v2_binary(content: bytes) -> Payload:
    element = len(content).to_bytes(4, "little") + content
    tensor = {
        "name": _INPUT,
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(element)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    return Payload(headers, head + element)


def _v2_json(content_type: str, content: bytes) -> Payload:
    is_text = content_type == "application/json" or content_type.startswith("text/")
    data = content.decode() if is_text else base64.b64encode(content).decode()
    tensor = {
        "name": _INPUT,
        "shape": [1, 1],
        "datatype": "BYTES",
        "data": [data],
        "parameters": {"content_type": "str" if is_text else "base64"},
    }
    return Payload({"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}).encode())
