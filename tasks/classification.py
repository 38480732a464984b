"""Classification: the label of an image, or all labels that apply."""

import base64
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from tasks._examples import synthetic_image
from tasks._images import IMAGE_UPLOAD, DecodedImage, Fit, Frame, ImageBytes, decode_image, encode_image, fit_image
from tasks.comparison import overlap
from tasks.contract import (
    Answer,
    Array,
    Arrays,
    FileBytes,
    InvalidInput,
    InvalidOutput,
    Limits,
    Problem,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
)

_MAX_HEATMAP_SIDE = 512
"""Pixels. The map has one value per 32×32 pixels of the network's input; enlarging it further adds no detail."""
_NO_HEATMAP = "This model returns no evidence by position, so that no heat map can be drawn: omit `heatmap`."


class ClassificationRequest(Request):
    """An image, and options for the answer."""

    image: ImageBytes
    top_k: Annotated[int, Field(ge=1, le=1000, description="Maximum number of labels, most probable first.")] = 5
    heatmap: Annotated[
        bool, Field(description="Also return a heat map of the evidence for the most probable label.")
    ] = False


class TagsRequest(Request):
    """An image, and options for the answer of a multi-label model."""

    image: ImageBytes
    all_labels: Annotated[bool, Field(description="Also return the labels below their thresholds.")] = False
    heatmap: Annotated[
        bool, Field(description="Also return a heat map of the evidence for the most probable label.")
    ] = False


class LabelScore(BaseModel):
    """A label and its calibrated probability."""

    label: str
    probability: float


class TagScore(LabelScore):
    """A label, its calibrated probability, and the minimum probability at which it is returned."""

    threshold: float


class Heatmap(BaseModel):
    """The evidence for a label, as a greyscale PNG that covers the whole image; white is the strongest evidence."""

    label: str
    width: int
    height: int
    png: FileBytes


class ClassificationAnswer(Answer):
    """The most probable label, and the runners-up."""

    label: str
    probability: float
    labels: list[LabelScore]
    heatmap: Heatmap | None = None


class TagsAnswer(Answer):
    """The labels whose probabilities reach their thresholds, most probable first; there may be none."""

    labels: list[TagScore]
    others: Annotated[
        list[TagScore] | None, Field(description="The labels below their thresholds, if `all_labels` is set.")
    ] = None
    heatmap: Heatmap | None = None


@dataclass(frozen=True)
class Classification(Task):
    """One label for an image, or all labels that apply.

    Attributes:
        labels: the classes, in the order of the network's outputs.
        size: side length of the network's input, in pixels.
        fit: how an image is fitted to that square.
        thresholds: of a multi-label model, the minimum probability at which each label is returned; empty if an image
            has exactly one label.
        heatmaps: whether the graph returns an activation map, from which heat maps are drawn; a graph that another
            program made rarely does.
    """

    labels: tuple[str, ...]
    size: int = 224
    fit: Fit = "squash"
    thresholds: tuple[float, ...] = ()
    heatmaps: bool = True

    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decodes_files: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises ValueError if there are thresholds, but not one for each label."""
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ValueError(f"There are {len(self.thresholds)} thresholds for {len(self.labels)} labels.")

    compared_fields: ClassVar[tuple[str, ...]] = ("label", "probability")

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return bool(self.thresholds)

    @property
    def request_type(self) -> type[ClassificationRequest] | type[TagsRequest]:
        """TagsRequest for a multi-label model."""
        return TagsRequest if self.is_multi_label else ClassificationRequest

    @property
    def answer_type(self) -> type[ClassificationAnswer] | type[TagsAnswer]:
        """TagsAnswer for a multi-label model."""
        return TagsAnswer if self.is_multi_label else ClassificationAnswer

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Unscaled pixels; the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.size, self.size, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities, and the class-activation map: the evidence for each class at each position."""
        classes = len(self.labels)
        probabilities = TensorSpec("probabilities", "float32", (classes,))
        if not self.heatmaps:
            return (probabilities,)
        return probabilities, TensorSpec("activation_map", "float32", (classes, "map_height", "map_width"))

    def decode(self, request: Any, limits: Limits) -> DecodedImage:
        """Decode the image to upright 8-bit RGB. Raises InvalidInput, also for a heat map that cannot be drawn."""
        if request.heatmap and not self.heatmaps:
            raise InvalidInput(_NO_HEATMAP, problems=(Problem("heatmap", "unsupported", _NO_HEATMAP),))
        return decode_image(request.image, max_pixels=limits.pixels, min_side=self.size)

    def preprocess(self, raw: DecodedImage) -> Samples:
        """Fit the image to the network's square: one sample, with its Frame as the context."""
        pixels, frame = fit_image(raw, self.size, self.size, self.fit)
        return Samples({"image": pixels[np.newaxis]}, frame)

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> ClassificationAnswer | TagsAnswer:
        """Return the `top_k` most probable labels, or those above their thresholds; and a heat map if requested."""
        probabilities = outputs["probabilities"][0]
        if not np.isfinite(probabilities).all():
            raise InvalidOutput("The network returned no finite probabilities for this image.")
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
        labels: list[TagScore] = []
        others: list[TagScore] = []
        for i in order.tolist():
            score = TagScore(
                label=self.labels[i], probability=_rounded(probabilities[i]), threshold=_rounded(self.thresholds[i])
            )
            (labels if probabilities[i] >= self.thresholds[i] else others).append(score)
        return TagsAnswer(labels=labels, others=others if with_others else None, heatmap=heatmap)

    def _heatmap(self, activation_map: Array, label: int, frame: Frame) -> Heatmap:
        """Resize the evidence for a label to the image; parts that the network did not see are black."""
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
        return Heatmap(label=self.labels[label], width=width, height=height, png=encode_image(pixels, "png"))

    def example(self) -> dict[str, Any]:
        """Return a request with a synthetic image."""
        image = base64.b64encode(synthetic_image()).decode("ascii")
        return {"image": image, "all_labels": True} if self.is_multi_label else {"image": image, "top_k": 3}

    def agreement(self, ours: Any, theirs: Any) -> float:
        """Compare label and probability; of a multi-label model, return the fraction of labels that both return."""
        if self.is_multi_label:
            return overlap([tag.label for tag in ours.labels], [tag.label for tag in theirs.labels])
        return super().agreement(ours, theirs)

    def examples(self) -> list[dict[str, Any]]:
        """Return the example without and, if the model has them, with a heat map."""
        return [self.example(), {**self.example(), "heatmap": True}] if self.heatmaps else [self.example()]


def _rounded(probability: Any) -> float:
    return round(float(probability), 6)
