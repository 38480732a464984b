"""Brightness: the mean brightness of an image, a number from 0 to 1."""

import base64
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from tasks._examples import synthetic_image
from tasks._images import IMAGE_UPLOAD, DecodedImage, ImageBytes, decode_image, fit_image
from tasks.contract import Answer, Arrays, InvalidOutput, Limits, Request, Samples, Task, TensorSpec, Upload


class BrightnessRequest(Request):
    """An image."""

    image: ImageBytes


class BrightnessAnswer(Answer):
    """The brightness of the image."""

    brightness: Annotated[float, Field(description="0 for black, 1 for white.")]


@dataclass(frozen=True)
class Brightness(Task):
    """A number for an image.

    Attributes:
        size: side length of the network's input, in pixels.
    """

    size: int = 16

    request_type = BrightnessRequest
    answer_type = BrightnessAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Unscaled pixels."""
        return (TensorSpec("image", "uint8", (self.size, self.size, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The brightness."""
        return (TensorSpec("brightness", "float32", ()),)

    def decode(self, request: BrightnessRequest, limits: Limits) -> DecodedImage:
        """Decode the image to upright 8-bit RGB."""
        return decode_image(request.image, max_pixels=limits.pixels, min_side=self.size)

    def preprocess(self, raw: DecodedImage) -> Samples:
        """Stretch the image to the network's square: one sample."""
        pixels, _ = fit_image(raw, self.size, self.size, "squash")
        return Samples({"image": pixels[np.newaxis]})

    def postprocess(self, outputs: Arrays, samples: Samples, request: BrightnessRequest) -> BrightnessAnswer:
        """Return the number."""
        brightness = float(outputs["brightness"][0])
        if not np.isfinite(brightness):
            raise InvalidOutput("The network returned no finite brightness for this image.")
        return BrightnessAnswer(brightness=round(brightness, 6))

    def example(self) -> dict[str, Any]:
        """Return a request with a synthetic image."""
        return {"image": base64.b64encode(synthetic_image()).decode("ascii")}
