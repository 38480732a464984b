"""The servers that are compared: how each is started, and in which form it takes a request."""

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["raw", "multipart", "v1", "v2-binary", "v2-json"]
"""How a payload travels: as the body itself; as the file of a form; as base64 in the JSON of KServe's V1
protocol; or as a BYTES tensor of the Open Inference Protocol, with its binary extension or in JSON (base64 if it is no
text). See `payloads.py`."""


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: what `--only` and the results call it.
        title: what the table calls it.
        package: the distribution whose version the results state.
        folder: its folder in `servers/`, with `server.py` and `requirements.txt`.
        processes: processes that run the graph; 0 for one per core.
        protocol: how it takes a picture or a text. All but the V2 protocols take rows as the JSON that
            they are.
        path: the URL path of its predictions.
        settings: what was chosen for it, for the reader of the results.
        python: the version of Python that it needs, if it is not the one that runs the benchmark.
        needs_libpython: whether it loads libpython as a shared library, which not every build of Python has.
    """

    name: str
    title: str
    package: str
    folder: str
    settings: str
    processes: int = 0
    protocol: Protocol = "raw"
    path: str = "/predict"
    python: str | None = None
    needs_libpython: bool = False


PEERS = (
    Peer(
        "litserve", "LitServe", "litserve", "litserve", "a worker per core, batches of up to 32", protocol="multipart"
    ),
    Peer(
        "bentoml",
        "BentoML",
        "bentoml",
        "bentoml",
        "a worker per core, no batching (it is for clients that send lists)",
        protocol="multipart",
    ),
    Peer(
        "kserve",
        "KServe (Python)",
        "kserve",
        "kserve",
        "a process per core, no batching (KServe has it only in a Go sidecar)",
        protocol="v1",
        path="/v1/models/model:predict",
    ),
    Peer(
        "mlserver",
        "MLServer",
        "mlserver",
        "mlserver",
        "a worker per core, adaptive batching of up to 32",
        protocol="v2-json",
        path="/v2/models/model/infer",
    ),
    Peer("ray_serve", "Ray Serve", "ray", "ray_serve", "a replica per core, @serve.batch of up to 32"),
    Peer("mosec", "mosec", "mosec", "mosec", "a worker per core, batches of up to 32"),
    Peer(
        "pytriton",
        "pytriton",
        "nvidia-pytriton",
        "pytriton",
        "Triton with dynamic batching of up to 32, an instance per core",
        protocol="v2-binary",
        path="/v2/models/model/infer",
        python="3.12",
        needs_libpython=True,
    ),
    Peer("fastapi", "FastAPI", "fastapi", "fastapi", "one process, a pool of threads, no batching", processes=1),
    Peer("fastapi_2", "FastAPI × 2", "fastapi", "fastapi", "two processes, no batching", processes=2),
)
