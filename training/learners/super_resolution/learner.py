"""Super-resolution: images made larger and cleaner, learned from sharp images that are degraded on the fly."""

import base64
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from tasks._images import DecodedImage
from tasks.contract import Arrays, Task
from tasks.super_resolution import SuperResolution
from training.core.config import option
from training.core.errors import CannotTrain
from training.core.results import Comparison, Evaluation, Figure, SampleScores, Trained
from training.engine.batches import random_indices
from training.engine.runtime import Batch, Runtime
from training.evaluation.comparison import compare_means
from training.learners.super_resolution.dataset import EvaluationImages, TrainingCrops, read_sharp_folder
from training.learners.super_resolution.degradation import CropSampler, DegradationParams, DegradedImage
from training.learners.super_resolution.evaluate import (
    compute_metrics,
    describe_failures,
    describe_gains,
    table_by_jpeg_quality,
    table_by_set,
)
from training.learners.super_resolution.metrics import ImageResult, Pixels, Quality, psnr, ssim
from training.learners.super_resolution.network import Generator, ServedGenerator
from training.learners.super_resolution.perceptual import PerceptualFeatures
from training.learners.super_resolution.plots import RestorationComparison, draw_comparisons, find_text_centre
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

_TILE_BATCH_SIZE = 8


@dataclass(frozen=True)
class Options(ImageOptions):
    """Options of the super-resolution learner."""

    frozen_epochs: int = option(0, "additional epochs at the start with the pretrained backbone frozen", at_least=0)
    frozen_rate: float = option(1e-3, "peak learning rate while the backbone is frozen", above=0)
    valid_fraction: float = option(0.1, "fraction held out for validation", above=0, below=1)
    scale: int = option(2, "size of the output relative to the input (2, 3 or 4)", at_least=2, at_most=4)
    tile: int = option(128, "side length of the tiles that the network processes when served, in pixels", at_least=64)
    crop_size: int = option(64, "side length of the training crops, in pixels of the degraded image", at_least=40)
    crops_per_image: int = option(4, "random crops per image and epoch", at_least=1)
    max_side: int = option(1024, "sharp images with a longer side are downscaled to this first, in pixels", at_least=1)
    width: int = option(32, "channels of the residual blocks", at_least=1)
    blocks: int = option(6, "number of residual blocks", at_least=1)
    pixel_epochs: int = option(4, "number of epochs at the start with the pixel loss only", at_least=0)
    feature_weight: float = option(0.02, "weight of the feature loss; the pixel loss has weight 1", at_least=0)
    style_weight: float = option(0.005, "weight of the style loss (Gram matrices)", at_least=0)
    min_quality: int = option(10, "lowest quality of the JPEG compression", at_least=1, at_most=100)
    max_quality: int = option(70, "highest quality of the JPEG compression", at_least=1, at_most=100)
    text_fraction: float = option(
        0.7, "fraction of the degraded crops that are overlaid with text", at_least=0, at_most=1
    )
    clean_fraction: float = option(0.25, "fraction of the crops that are only downscaled", at_least=0, at_most=1)


class SuperResolutionLearner(ImageLearner):
    """Trains a network to undo the degradation of sharp images."""

    summary: ClassVar[str] = (
        "enlarge images and remove artefacts; trained on sharp images that are degraded artificially"
    )
    data_kind: ClassVar[str] = "a folder of sharp images, with or without subfolders"
    hub_tag: ClassVar[str] = "image-to-image"
    default_options: ClassVar[Options] = Options()
    body_name: ClassVar[str] = "unet.body"
    lower_is_better: bool = True
    task: SuperResolution
    samples: TrainingCrops
    held_out: EvaluationImages

    def _load_data(self, data: Path) -> None:
        options, self.task = self.options, _build_task(self.options)
        self.folder = read_sharp_folder(
            data, unreadable=options.unreadable, valid_fraction=options.valid_fraction, min_side=32 * options.scale
        )
        params = DegradationParams(
            options.min_quality, options.max_quality, options.text_fraction, options.clean_fraction
        )
        self.samples = TrainingCrops(
            self.folder.train,
            CropSampler(options.crop_size, options.scale, params),
            crops_per_image=options.crops_per_image,
            pixel_epochs=options.pixel_epochs,
            max_side=options.max_side,
            seed=self.settings.seed,
            cache_bytes=self.cache_bytes,
        )
        self.held_out = self._evaluation_images(self.folder.validation)
        self.tests = {name: self._evaluation_images(files) for name, files in self.folder.tests.items()}
        self.samples.fill_cache()
        self.held_out.fill_cache()
        self.perceptual = PerceptualFeatures(load_body(options.backbone, self.weights))

    def _evaluation_images(self, files: Sequence[Path]) -> EvaluationImages:
        options = self.options
        params = DegradationParams(options.min_quality, options.max_quality)
        return EvaluationImages(
            files, options.scale, params, max_side=options.max_side, cache_bytes=self.cache_bytes // 4
        )

    def data_summary(self) -> str:
        """Return the counts, the split, and any warnings."""
        folder = self.folder
        counts = f"{len(folder.train):,} pictures to train on, {len(folder.validation):,} to validate"
        names = " and ".join(f"{name} ({len(files)})" for name, files in folder.tests.items())
        tests = [f"Test sets, evaluated at the end: {names}."] if names else []
        return "\n".join([f"{counts}: {folder.split}.", *tests, *folder.warnings])

    def network(self) -> nn.Module:
        """Return a new generator, in channels-last memory format (the fastest for convolutions)."""
        options = self.options
        body = load_body(options.backbone, self.weights)
        generator = Generator(body, options.scale, width=options.width, blocks=options.blocks)
        return generator.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the L1 loss of the pixels (0…1), and after `pixel_epochs` the feature and style losses as well."""
        restored = network(batch["image"])[0].float()
        target = batch["target"].permute(0, 3, 1, 2).float() / 255
        pixel_loss = l1_loss(restored, target)
        if not bool(batch["perceptual"].all()):
            return pixel_loss
        feature_loss, style_loss = self.perceptual.to(restored.device).loss(restored, target)
        options = self.options
        total: Tensor = pixel_loss + options.feature_weight * feature_loss + options.style_weight * style_loss
        return total

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return the mean perceptual distance on the validation images, and the PSNR gains over bicubic resizing."""
        network.eval()
        perceptual = self.perceptual.to(runtime.device)
        sums = torch.zeros(5, dtype=torch.float64, device=runtime.device)
        for index in range(runtime.rank, len(self.held_out), runtime.world_size):
            degraded, original = self.held_out.degraded_pair(index)
            restored = _restore_whole(network, degraded.pixels, runtime)
            bicubic, text_mask = self._upscale_bicubic(degraded.pixels), self._upscale_mask(degraded.text_mask)
            mask = text_mask if text_mask.any() else None
            clean, _ = self.held_out.clean_pair(index)
            clean_restored = _restore_whole(network, clean.pixels, runtime)
            sums += torch.tensor(
                [
                    _perceptual_distance(perceptual, restored, original),
                    psnr(restored, original) - psnr(bicubic, original),
                    psnr(restored, original, mask) - psnr(bicubic, original, mask),
                    psnr(clean_restored, original) - psnr(self._upscale_bicubic(clean.pixels), original),
                    1.0,
                ],
                device=runtime.device,
            )
        *totals, count = runtime.all_reduce_sum(sums).tolist()
        names = ("distance", "gain", "text", "clean")
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def _upscale_bicubic(self, pixels: Pixels) -> Pixels:
        """Upscale by Pillow's bicubic resizing, the baseline of all gains."""
        size = self.task.scale * pixels.shape[1], self.task.scale * pixels.shape[0]
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    def _upscale_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return mask.repeat(self.task.scale, 0).repeat(self.task.scale, 1)

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, from 8-bit pixels to 8-bit pixels."""
        return ServedGenerator(copy.deepcopy(network).float().cpu()).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Compare with bicubic resizing on validation and test images, restored tile by tile as when served."""
        self.perceptual.cpu()
        sets = {"validation": self.held_out, **self.tests}
        degraded = {name: self._evaluate_images(exported, images, clean=False) for name, images in sets.items()}
        clean = {name: self._evaluate_images(exported, images, clean=True) for name, images in sets.items()}
        largest = max(degraded, key=lambda name: len(degraded[name]))
        return Evaluation(
            metrics=compute_metrics(degraded, clean),
            notes=(*self._notes(trained), describe_gains(degraded["validation"])),
            tables=(table_by_set(degraded, clean), table_by_jpeg_quality(degraded[largest], largest)),
            figures=self._figures(exported, degraded["validation"]),
            failures=describe_failures(degraded["validation"], clean["validation"]),
            caveats=("The added detail is invented: it is plausible, but not a record of the scene.",),
            comparisons=(_compare_with_bicubic(degraded["validation"]),),
        )

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return the PSNR of each degraded validation image, restored tile by tile as when served."""
        pairs = (self.held_out.degraded_pair(index) for index in range(len(self.held_out)))
        values = [psnr(self._restore_tiled(exported, degraded.pixels), original) for degraded, original in pairs]
        return _psnr_scores(values)

    def _evaluate_images(self, exported: nn.Module, images: EvaluationImages, *, clean: bool) -> list[ImageResult]:
        results = []
        for index, path in enumerate(images.paths):
            degraded, original = images.clean_pair(index) if clean else images.degraded_pair(index)
            text_mask = self._upscale_mask(degraded.text_mask)
            restored = self._measure_quality(self._restore_tiled(exported, degraded.pixels), original, text_mask)
            bicubic = self._measure_quality(self._upscale_bicubic(degraded.pixels), original, text_mask)
            results.append(ImageResult(path.name, degraded.quality, restored, bicubic))
        return results

    def _measure_quality(self, restored: Pixels, original: Pixels, text_mask: NDArray[np.bool_]) -> Quality:
        return Quality(
            psnr=psnr(restored, original),
            ssim=ssim(restored, original),
            distance=_perceptual_distance(self.perceptual, restored, original),
            text_psnr=psnr(restored, original, text_mask) if text_mask.any() else None,
            other_psnr=psnr(restored, original, ~text_mask) if not text_mask.all() else None,
        )

    def _restore_tiled(self, module: nn.Module, pixels: Pixels) -> Pixels:
        """Restore an image through the task's tiles, as the service does."""
        samples = self.task.preprocess(DecodedImage(Image.fromarray(pixels), pixels.shape[1], pixels.shape[0]))
        with torch.no_grad():
            image = torch.from_numpy(samples.arrays["image"])
            batches = [image[i : i + _TILE_BATCH_SIZE] for i in range(0, len(image), _TILE_BATCH_SIZE)]
            tiles = torch.cat([module(batch)[0] for batch in batches]).numpy()
        restored: Pixels = self.task.restore({"restored": tiles}, samples)
        return restored

    def _notes(self, trained: Sequence[Trained]) -> tuple[str, ...]:
        options = self.options
        notes = [
            f"Whole images are evaluated through the tiles that are served. They were downscaled {options.scale} times "
            "(by box, bilinear or bicubic resizing), overlaid with one or more texts, and compressed as "
            f"JPEG with a quality of {options.min_quality} to {options.max_quality}, in that order and as determined "
            "by a hash of the file name. 'Clean' images were only downscaled, by bicubic resizing.",
            "PSNR is computed over the three channels and all pixels, SSIM with a Gaussian window of 11 pixels; both "
            "are means over images. The baseline is Pillow's bicubic resizing of the same image.",
            f"The distance resembles LPIPS but is not LPIPS: features of torchvision's {options.backbone} at "
            f"{len(self.perceptual.layers)} depths are scaled to unit length, and their squared difference is averaged "
            "over the positions and the depths, without learned weights. The same network is part of the loss, so "
            "expect a smaller gain by another metric.",
            f"Split: {self.folder.split}. {self._selection_note()}{self._test_note()}",
            self._backbone_note(),
        ]
        if len(trained) > 1:
            gains = ", ".join(f"{run.scores['gain']:.2f}" for run in trained)
            notes.append(f"Gains of the {len(trained)} seeds, in dB: {gains}; the first is published.")
        return tuple(notes)

    def _test_note(self) -> str:
        return " Nothing was chosen on the test images." if self.tests else ""

    def _figures(self, exported: nn.Module, results: Sequence[ImageResult], count: int = 6) -> tuple[Figure, ...]:
        order = np.argsort([result.gain for result in results], kind="stable").tolist()
        middle = max(0, (len(order) - count) // 2)
        groups = {"Smallest gains": order[:count], "Median gains": order[middle : middle + count]}
        if len(order) <= count:
            groups = {"Gains": order}
        note = "Sorted by the PSNR gain over bicubic resizing; one crop per image, around a text."
        figures = []
        for title, indices in groups.items():
            comparisons = [self._compare(exported, index, results[index]) for index in indices]
            figures.append(Figure(title, draw_comparisons(comparisons), note))
        return (*figures, self._augmentation_figure())

    def _compare(self, exported: nn.Module, index: int, result: ImageResult) -> RestorationComparison:
        degraded, original = self.held_out.degraded_pair(index)
        jpeg = "" if result.jpeg_quality is None else f"JPEG {result.jpeg_quality}, "
        return RestorationComparison(
            degraded=degraded.pixels,
            bicubic=self._upscale_bicubic(degraded.pixels),
            restored=self._restore_tiled(exported, degraded.pixels),
            original=original,
            caption=f"{result.name[:40]}: {jpeg}PSNR {result.bicubic.psnr:.1f} bicubic, "
            f"{result.restored.psnr:.1f} restored",
            centre=find_text_centre(degraded.text_mask),
        )

    def validation_inputs(self, count: int) -> Arrays:
        """Return up to `count` tiles of validation images, evenly spaced over the validation set."""
        images = min(count, len(self.held_out))
        tiles_per_image = -(-count // images)
        indices = np.linspace(0, len(self.held_out) - 1, images).round().astype(int)
        degraded = [self.held_out.degraded_pair(int(index))[0] for index in indices]
        tiles = [self.task.tiling.cut(image.pixels)[:tiles_per_image] for image in degraded]
        return {"image": np.concatenate(tiles)[:count]}

    def training_inputs(self, count: int) -> Arrays:
        """Return a tile of each of up to `count` training images, degraded as those for evaluation."""
        images = self._evaluation_images(self.folder.train)
        indices = random_indices(len(images.paths), min(count, 64))
        tiles = [self.task.tiling.cut(images.degraded_pair(index)[0].pixels) for index in indices]
        return {"image": np.stack([cut[len(cut) // 2] for cut in tiles])}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with crops of validation images, one per file format; the first has the most text."""
        images = [self.held_out.degraded_pair(index)[0] for index in range(min(16, len(self.held_out)))]
        side = self.task.tile * 3 // 4
        crops = sorted(
            (image.crop(0, 0, side, side) for image in images), key=lambda crop: crop.text_mask.mean(), reverse=True
        )
        formats: tuple[dict[str, Any], ...] = ({}, {"format": "jpeg", "quality": 80}, {"format": "webp", "quality": 60})
        return self.task, [_request_body(crop) | fields for crop, fields in zip(crops, formats, strict=False)]


def _build_task(options: Any) -> SuperResolution:
    """Return the task with these options. Raises CannotTrain for invalid options."""
    if options.scale not in (2, 3, 4):
        raise CannotTrain(f"--scale {options.scale}: the scale must be 2, 3 or 4.")
    if options.crop_size < 40 or options.crop_size % 8:
        raise CannotTrain(f"--crop-size {options.crop_size}: the crop size must be a multiple of 8 and at least 40.")
    if options.tile < 64:
        raise CannotTrain(f"--tile {options.tile}: the tile size must be at least 64.")
    if not 1 <= options.min_quality <= options.max_quality <= 100:
        raise CannotTrain("--min-quality and --max-quality must satisfy 1 <= min <= max <= 100.")
    return SuperResolution(scale=options.scale, tile=options.tile)


def _psnr_scores(values: Sequence[float]) -> SampleScores:
    return SampleScores("psnr", np.array(values), "validation images")


def _compare_with_bicubic(results: Sequence[ImageResult]) -> Comparison:
    """Compare the PSNR of the degraded validation images with that of bicubic resizing."""
    scores = _psnr_scores([result.restored.psnr for result in results])
    return compare_means(scores, "bicubic resizing", np.array([result.bicubic.psnr for result in results]))


def _restore_whole(network: nn.Module, pixels: Pixels, runtime: Runtime) -> Pixels:
    """Restore a whole image in one forward pass, in float32, as it is served."""
    with torch.no_grad():
        (levels,) = ServedGenerator(network)(torch.tensor(pixels[np.newaxis]).to(runtime.device))
    restored: Pixels = levels[0].cpu().numpy()
    return restored


def _perceptual_distance(perceptual: PerceptualFeatures, restored: Pixels, original: Pixels) -> float:
    device = perceptual.mean.device
    images = (
        torch.tensor(pixels[np.newaxis]).to(device).permute(0, 3, 1, 2).float() / 255 for pixels in (restored, original)
    )
    with torch.no_grad():
        return float(perceptual.distance(*images))


def _request_body(image: DegradedImage) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image.pixels).save(file, "JPEG", quality=90)
    return {"image": base64.b64encode(file.getvalue()).decode("ascii")}
