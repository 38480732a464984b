"""What is in this picture?"""

import base64
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from tasks._examples import synthetic_image
from tasks._images import IMAGE_UPLOAD, DecodedImage, Fit, Frame, ImageBytes, decode_image, encoded, fit_image
from tasks.comparison import overlap
from tasks.contract import (
    Answer,
    Array,
    Arrays,
    FileBytes,
    InvalidOutput,
    Limits,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
)

_MAX_HEATMAP_SIDE = 512
"""Pixels. The map has one value per 32×32 pixels of the network's input; a larger picture of it holds no more."""


class ClassificationRequest(Request):
    """A picture, and how much to say about it."""

    image: ImageBytes
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many labels to return, the likeliest first.")] = 5
    heatmap: Annotated[bool, Field(description="Also return where in the picture the first label was seen.")] = False


class TagsRequest(Request):
    """A picture, and how much to say about it, to a model of several labels."""

    image: ImageBytes
    all_labels: Annotated[bool, Field(description="Also return the labels below their thresholds.")] = False
    heatmap: Annotated[bool, Field(description="Also return where the likeliest label was seen.")] = False


class LabelScore(BaseModel):
    """A label and its calibrated probability."""

    label: str
    probability: float


class TagScore(LabelScore):
    """A label, its calibrated probability, and the least probability at which it is given."""

    threshold: float


class Heatmap(BaseModel):
    """Where a label was seen: a grey PNG over the whole picture, white where most of the evidence lies."""

    label: str
    width: int
    height: int
    png: FileBytes


class ClassificationAnswer(Answer):
    """The likeliest label, and the runners-up."""

    label: str
    probability: float
    labels: list[LabelScore]
    heatmap: Heatmap | None = None


class TagsAnswer(Answer):
    """The labels whose probabilities reach their thresholds, the likeliest first; there may be none."""

    labels: list[TagScore]
    others: Annotated[list[TagScore] | None, Field(description="The rest, where all labels were asked for.")] = None
    heatmap: Heatmap | None = None


@dataclass(frozen=True)
class Classification(Task):
    """One label for a picture, or each label that fits.

    Attributes:
        labels: the classes, in the order of the network's outputs.
        size: side length of the network's input, in pixels.
        fit: how a picture is brought to that square.
        thresholds: of a model of several labels, the least probability at which each is given; empty where a picture
            has exactly one label.
    """

    labels: tuple[str, ...]
    size: int = 224
    fit: Fit = "squash"
    thresholds: tuple[float, ...] = ()

    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decoding_releases_gil: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises ValueError: there are thresholds, and not one for each label."""
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ValueError(f"There are {len(self.thresholds)} thresholds for {len(self.labels)} labels.")

    compared_fields: ClassVar[tuple[str, ...]] = ("label", "probability")

    @property
    def is_multi_label(self) -> bool:
        """Whether a picture may have more labels than one, or none."""
        return bool(self.thresholds)

    @property
    def request_type(self) -> type[ClassificationRequest] | type[TagsRequest]:
        """One for pictures of one label, one for several."""
        return TagsRequest if self.is_multi_label else ClassificationRequest

    @property
    def answer_type(self) -> type[ClassificationAnswer] | type[TagsAnswer]:
        """One for pictures of one label, one for several."""
        return TagsAnswer if self.is_multi_label else ClassificationAnswer

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Pixels as they are: the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.size, self.size, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities, and the class-activation map: each class's evidence at each place."""
        classes = len(self.labels)
        return (
            TensorSpec("probabilities", "float32", (classes,)),
            TensorSpec("activation_map", "float32", (classes, "map_height", "map_width")),
        )

    def decode(self, request: Any, limits: Limits) -> DecodedImage:
        """The picture, 8-bit RGB and upright."""
        return decode_image(request.image, max_pixels=limits.pixels, enough=self.size)

    def preprocess(self, raw: DecodedImage) -> Samples:
        """One sample: the picture fitted to the network's square. The context is its Frame."""
        pixels, frame = fit_image(raw, self.size, self.size, self.fit)
        return Samples({"image": pixels[np.newaxis]}, frame)

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> ClassificationAnswer | TagsAnswer:
        """The `top_k` likeliest labels, or those above their thresholds; a heat map where it was asked for."""
        probabilities = outputs["probabilities"][0]
        if not np.isfinite(probabilities).all():
            raise InvalidOutput("The network gave no finite probabilities for this picture.")
        order = np.argsort(-probabilities, kind="stable")
        heatmap = None
        if request.heatmap:
            heatmap = self._heatmap(outputs["activation_map"][0], int(order[0]), samples.context)
        if self.is_multi_label:
            return self._tags(probabilities, order, request.all_labels, heatmap)
        scores = [LabelScore(label=self.labels[i], probability=_rounded(probabilities[i])) for i in order]
        first = scores[0]
        return ClassificationAnswer(
            label=first.label, probability=first.probability, labels=scores[: request.top_k], heatmap=heatmap
        )

    def _tags(self, probabilities: Array, order: Array, with_others: bool, heatmap: Heatmap | None) -> TagsAnswer:
        given: list[TagScore] = []
        others: list[TagScore] = []
        for i in order.tolist():
            score = TagScore(
                label=self.labels[i], probability=_rounded(probabilities[i]), threshold=_rounded(self.thresholds[i])
            )
            (given if probabilities[i] >= self.thresholds[i] else others).append(score)
        return TagsAnswer(labels=given, others=others if with_others else None, heatmap=heatmap)

    def _heatmap(self, activation_map: Array, label: int, frame: Frame) -> Heatmap:
        """The label's evidence, stretched over the picture; what the network did not see is black."""
        evidence = np.maximum(activation_map[label], 0)
        levels = (evidence / max(float(evidence.max()), 1e-9) * 255).astype(np.uint8)
        ratio = min(1.0, _MAX_HEATMAP_SIDE / max(frame.width, frame.height))
        width, height = max(1, round(frame.width * ratio)), max(1, round(frame.height * ratio))
        square = Image.fromarray(levels).resize((self.size, self.size), Image.Resampling.BICUBIC)
        corners = frame.to_network(np.array([[0.0, 0.0], [frame.width, frame.height]]))
        (left, top), (right, bottom) = corners.tolist()
        step_x, step_y = (right - left) / width, (bottom - top) / height
        pixels = square.transform(
            (width, height), Image.Transform.AFFINE, (step_x, 0, left, 0, step_y, top), Image.Resampling.BILINEAR
        )
        return Heatmap(label=self.labels[label], width=width, height=height, png=encoded(pixels, "png"))

    def example(self) -> dict[str, Any]:
        """A synthetic picture."""
        image = base64.b64encode(synthetic_image()).decode("ascii")
        return {"image": image, "all_labels": True} if self.is_multi_label else {"image": image, "top_k": 3}

    def agreement(self, ours: Any, theirs: Any) -> float:
        """Of one label: whether it is the same, and as probable. Of several: the share that both answers give."""
        if self.is_multi_label:
            return overlap([tag.label for tag in ours.labels], [tag.label for tag in theirs.labels])
        return super().agreement(ours, theirs)

    def examples(self) -> list[dict[str, Any]]:
        """The picture, and the picture with a heat map."""
        return [self.example(), {**self.example(), "heatmap": True}]


def _rounded(probability: Any) -> float:
    return round(float(probability), 6)
