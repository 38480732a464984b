"""Endpoints that list and describe the models."""

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from service.models.model import Entry, Model
from service.models.precision import precision_name
from service.models.repository import Repository
from tasks.manifest import DataSource, Metric, Variant

_Name = Annotated[str, Path(description="The model's name.")]


class VersionState(BaseModel):
    """A version of a model, and whether it is being served."""

    version: str
    state: Annotated[
        Literal["ready", "shadow", "unavailable"],
        Field(description="ready: served; shadow: evaluated on mirrored requests; unavailable: neither."),
    ]
    reason: Annotated[str | None, Field(description="Why the version is not being served.")] = None


class ModelSummary(BaseModel):
    """A model in the list."""

    name: str
    state: Literal["ready", "unavailable"]
    version: Annotated[str | None, Field(description="The version that answers if a request does not name one.")]
    task: str | None
    title: str | None
    versions: list[VersionState]


class ModelList(BaseModel):
    """All models, by name."""

    models: list[ModelSummary]


class Tensor(BaseModel):
    """An input or output of the graph, without the batch axis."""

    name: str
    dtype: str
    shape: list[int | str]


class BatchInvariance(BaseModel):
    """How much an output of a sample depends on the other samples in its batch.

    For numbers: the difference, relative to the output's magnitude if that is above 1. For classes: the fraction that
    differs. For pixels: the difference in levels of 255.
    """

    output: str
    published: Annotated[float | None, Field(description="Measured when the model was published, on a CPU.")]
    measured: Annotated[
        float, Field(description="Measured on this server when the model was loaded, on its golden requests.")
    ]


class LatencyPoint(BaseModel):
    """Measured cost of a batch of one size and shape, first measured at warm-up and updated by every batch."""

    shape: Annotated[dict[str, list[int]], Field(description="Shape of each input, without the batch axis.")]
    size: Annotated[int, Field(description="Samples in the batch.")]
    seconds: float
    bytes: Annotated[int, Field(description="Expected memory use in addition to the model; 0 if not measured.")]


class ModelDetails(BaseModel):
    """A model that is being served: its card, metrics and an example request."""

    name: str
    version: str
    task: str
    title: str
    device: str
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], Field(description="The precision of the graph that answers here.")
    ]
    variants: Annotated[
        list[Variant], Field(description="The graphs of lower precision of this version, and what each loses.")
    ]
    labels: list[str] | None
    parameters: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    batch_invariance: list[BatchInvariance]
    curve: list[LatencyPoint]
    metrics: list[Metric]
    data: DataSource
    licence: str
    created: str
    code: str
    card: Annotated[str, Field(description="The model card, Markdown.")]
    example: Annotated[dict[str, Any], Field(description="A body for POST …/predict.")]
    versions: list[VersionState]


def models_router(repository: Repository) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="List the models")
    async def list_models() -> ModelList:
        groups = groupby(repository.entries(), key=attrgetter("name"))
        return ModelList(models=[_summary(name, entries, repository.default_of(name)) for name, entries in groups])

    @router.get("/{name}", summary="Describe a model")
    async def describe(name: _Name) -> ModelDetails:
        return _details(repository.find(name), repository)

    @router.get("/{name}/versions/{version}", summary="Describe a version of a model")
    async def describe_version(name: _Name, version: str) -> ModelDetails:
        return _details(repository.find(name, version), repository)

    return router


def version_state(entry: Entry) -> VersionState:
    """Describe a version."""
    unserved: Literal["shadow", "unavailable"] = "unavailable" if entry.shadow is None else "shadow"
    state: Literal["ready", "shadow", "unavailable"] = unserved if entry.model is None else "ready"
    return VersionState(version=entry.version, state=state, reason=entry.reason)


def _summary(name: str, entries: Iterable[Entry], served: Model | None) -> ModelSummary:
    return ModelSummary(
        name=name,
        state="unavailable" if served is None else "ready",
        version=served.manifest.version if served else None,
        task=served.manifest.task if served else None,
        title=served.manifest.title if served else None,
        versions=[version_state(entry) for entry in entries],
    )


def _details(model: Model, repository: Repository) -> ModelDetails:
    manifest, task = model.manifest, model.task
    published = manifest.of_variant(model.variant).batch_invariance or {}
    return ModelDetails(
        **manifest.model_dump(
            include={"name", "version", "task", "title", "metrics", "parameters", "licence", "created", "code"}
        ),
        data=_without_folders(manifest.data),
        device=model.pipeline.device,
        precision=precision_name(model.variant),
        variants=list(manifest.variants),
        labels=manifest.parameters.get("labels"),
        inputs=[Tensor(name=spec.name, dtype=spec.dtype, shape=list(spec.shape)) for spec in task.inputs],
        outputs=[Tensor(name=spec.name, dtype=spec.dtype, shape=list(spec.shape)) for spec in task.outputs],
        batch_invariance=[
            BatchInvariance(output=name, published=published.get(name), measured=measured)
            for name, measured in model.deviation.items()
        ],
        curve=[
            LatencyPoint(
                shape={name: list(axes) for name, _, axes in shape}, size=size, seconds=seconds, bytes=memory_bytes
            )
            for shape, size, seconds, memory_bytes in model.pipeline.latency_profile.table()
        ],
        card=_card_without_folders(model),
        example=dict(model.example),
        versions=[version_state(entry) for entry in repository.versions_of(manifest.name)],
    )


def _without_folders(data: DataSource) -> DataSource:
    """Return the source of the data; of a file or folder on the machine that trained, only its last part."""
    address = None if data.address is None or data.address.startswith("file:") else _last_part(data.address)
    return data.model_copy(update={"name": _last_part(data.name), "address": address})


def _card_without_folders(model: Model) -> str:
    """Return the card, without the folders of the data on the machine that trained."""
    card = model.card
    for text in filter(None, (model.manifest.data.name, model.manifest.data.address)):
        card = card.replace(text, _last_part(text)) if _is_path(text) else card
    return card


def _last_part(text: str) -> str:
    if not _is_path(text):
        return text
    return (PureWindowsPath(text) if "\\" in text else PurePosixPath(text)).name or "data"


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "./", "../")) or PureWindowsPath(text).drive != ""
