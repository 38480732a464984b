"""How the restorer of pictures is trained: good pictures, made worse as they are read, and what they were."""

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
from training.core.results import Evaluation, Figure, Trained
from training.engine.runtime import Batch, Runtime
from training.learners.super_resolution.dataset import DamagedCrops, DegradedImages, read_sharp
from training.learners.super_resolution.degradation import Crops, Damage, Degraded
from training.learners.super_resolution.evaluate import by_quality, by_set, failures, metrics
from training.learners.super_resolution.metrics import Judged, Pixels, Quality, psnr, ssim
from training.learners.super_resolution.network import Generator, ServedGenerator
from training.learners.super_resolution.perceptual import Perception
from training.learners.super_resolution.plots import Strip, middle_of, strips
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

_TILES_AT_ONCE = 8


@dataclass(frozen=True)
class Options(ImageOptions):
    """What can be chosen for super-resolution."""

    frozen_epochs: int = option(0, "epochs before the others, in which a pretrained body stays frozen")
    frozen_rate: float = option(1e-3, "peak learning rate while the body is frozen")
    valid_fraction: float = option(0.1, "share held out for validation")
    scale: int = option(2, "how many times as wide and as high the answer is")
    tile: int = option(128, "side length of what the network sees at once in service, in pixels")
    crop: int = option(64, "the same in training, in pixels of the smaller picture")
    crops: int = option(4, "random crops of each picture an epoch")
    longest: int = option(1024, "good pictures with a longer side are made smaller first, in pixels")
    width: int = option(32, "channels of the residual convolutions")
    blocks: int = option(6, "how many pairs of them")
    pixel_epochs: int = option(4, "first epochs, in which only the difference of the pixels counts")
    feature_weight: float = option(0.02, "of the feature loss, beside 1 for the pixels")
    style_weight: float = option(0.005, "of the loss of Gram matrices")
    lowest_quality: int = option(10, "of the JPEG that pictures go through")
    highest_quality: int = option(70, "the same")
    text: float = option(0.7, "share of the damaged crops that text is drawn over")
    clean: float = option(0.25, "share of the crops that are only made smaller")


class SuperResolutionLearner(ImageLearner):
    """Learns to undo what was done to good pictures."""

    summary: ClassVar[str] = "the same picture, larger and cleaner: from good pictures that are made worse on the way"
    data_kind: ClassVar[str] = "a folder of good pictures, in folders or not"
    hub_tag: ClassVar[str] = "image-to-image"
    default_options: ClassVar[Options] = Options()
    body_name: ClassVar[str] = "unet.body"
    lower_is_better: bool = True
    task: SuperResolution
    samples: DamagedCrops
    held_out: DegradedImages

    def _load_data(self, data: Path) -> None:
        options, self.task = self.options, _task(self.options)
        smallest = 32 * options.scale
        self.folder = read_sharp(
            data, unreadable=options.unreadable, valid_fraction=options.valid_fraction, smallest=smallest
        )
        always = Damage(options.lowest_quality, options.highest_quality)
        sometimes = Damage(options.lowest_quality, options.highest_quality, options.text, options.clean)
        self.samples = DamagedCrops(
            self.folder.train,
            Crops(options.crop, options.scale, sometimes),
            a_picture=options.crops,
            pixel_epochs=options.pixel_epochs,
            longest=options.longest,
            seed=self.trained_with.seed,
            cache_bytes=self.cache_bytes,
        )
        self.held_out = self._damaged(self.folder.validation, always)
        self.tests = {name: self._damaged(files, always) for name, files in self.folder.tests.items()}
        self.samples.fill_cache()
        self.held_out.fill_cache()
        self.perception = Perception(load_body(options.backbone, self.weights))

    def _damaged(self, files: Sequence[Path], damage: Damage) -> DegradedImages:
        options = self.options
        return DegradedImages(files, options.scale, damage, longest=options.longest, cache_bytes=self.cache_bytes // 4)

    def data_summary(self) -> str:
        """Counts, and what was found on reading."""
        folder = self.folder
        counts = f"{len(folder.train):,} pictures to train on, {len(folder.validation):,} to validate"
        tests = " and ".join(f"{name} ({len(files)})" for name, files in folder.tests.items())
        judges = [f"Judged, at the end, on the pictures of {tests} as well."] if tests else []
        return "\n".join([f"{counts}: {folder.split}.", *judges, *folder.notices])

    def network(self) -> nn.Module:
        """The generator; channels last, the layout that convolutions run fastest in."""
        options = self.options
        made = Generator(
            load_body(options.backbone, self.weights), options.scale, width=options.width, blocks=options.blocks
        )
        return made.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The L1 distance of the pixels (0…1), and from `pixel_epochs` on that of features and Gram matrices."""
        restored = network(batch["image"])[0].float()
        wanted = batch["wanted"].permute(0, 3, 1, 2).float() / 255
        pixels = l1_loss(restored, wanted)
        if not bool(batch["looks"].all()):
            return pixels
        features, styles = self.perception.to(restored.device).loss(restored, wanted)
        total: Tensor = pixels + self.options.feature_weight * features + self.options.style_weight * styles
        return total

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """On the validation pictures: how far they look from the originals, and what was gained over bicubic."""
        network.eval()
        perception = self.perception.to(runtime.device)
        sums = torch.zeros(5, dtype=torch.float64, device=runtime.device)
        for index in range(runtime.rank, len(self.held_out), runtime.world_size):
            worse, wanted = self.held_out.pair(index)
            restored = _whole(network, worse.pixels, runtime)
            resized, covered = self._resized(worse.pixels), self._larger(worse.covered)
            under = covered if covered.any() else None
            small, _ = self.held_out.clean_pair(index)
            sums += torch.tensor(
                [
                    _distance(perception, restored, wanted),
                    psnr(restored, wanted) - psnr(resized, wanted),
                    psnr(restored, wanted, under) - psnr(resized, wanted, under),
                    psnr(_whole(network, small.pixels, runtime), wanted) - psnr(self._resized(small.pixels), wanted),
                    1.0,
                ],
                device=runtime.device,
            )
        *means, count = runtime.all_reduce_sum(sums).tolist()
        names = ("distance", "gain", "text", "clean")
        return {name: value / count for name, value in zip(names, means, strict=True)}

    def _resized(self, pixels: Pixels) -> Pixels:
        """By Pillow's bicubic resizing, what all is compared with."""
        size = self.task.scale * pixels.shape[1], self.task.scale * pixels.shape[0]
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    def _larger(self, covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return covered.repeat(self.task.scale, 0).repeat(self.task.scale, 1)

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Pixels in, pixels out."""
        return ServedGenerator(copy.deepcopy(network).float().cpu()).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Figures on validation and test pictures against bicubic resizing, as they are served: tile by tile."""
        self.perception.cpu()
        sets = {"validation": self.held_out, **self.tests}
        damaged = {name: self._judged(served, pictures, clean=False) for name, pictures in sets.items()}
        clean = {name: self._judged(served, pictures, clean=True) for name, pictures in sets.items()}
        largest = max(damaged, key=lambda name: len(damaged[name]))
        return Evaluation(
            metrics=metrics(damaged, clean),
            notes=self._notes(trained),
            tables=(by_set(damaged, clean), by_quality(damaged[largest], largest)),
            figures=self._strips(served, damaged["validation"]),
            failures=failures(damaged["validation"], clean["validation"]),
            caveats=("The detail that it adds is invented: it is likely, and nobody saw it.",),
        )

    def _judged(self, served: nn.Module, pictures: DegradedImages, *, clean: bool) -> list[Judged]:
        found = []
        for index, path in enumerate(pictures.paths):
            worse, wanted = pictures.clean_pair(index) if clean else pictures.pair(index)
            covered = self._larger(worse.covered)
            restored, bicubic = (
                self._quality(pixels, wanted, covered)
                for pixels in (self._restored(served, worse.pixels), self._resized(worse.pixels))
            )
            found.append(Judged(path.name, worse.quality, restored, bicubic))
        return found

    def _quality(self, got: Pixels, wanted: Pixels, covered: NDArray[np.bool_]) -> Quality:
        return Quality(
            psnr=psnr(got, wanted),
            ssim=ssim(got, wanted),
            distance=_distance(self.perception, got, wanted),
            under_text=psnr(got, wanted, covered) if covered.any() else None,
            elsewhere=psnr(got, wanted, ~covered) if not covered.all() else None,
        )

    def _restored(self, served: nn.Module, pixels: Pixels) -> Pixels:
        """The picture as a client gets it, before it becomes a file."""
        samples = self.task.preprocess(DecodedImage(Image.fromarray(pixels), pixels.shape[1], pixels.shape[0]))
        with torch.no_grad():
            image = torch.from_numpy(samples.arrays["image"])
            parts = [image[i : i + _TILES_AT_ONCE] for i in range(0, len(image), _TILES_AT_ONCE)]
            tiles = torch.cat([served(part)[0] for part in parts]).numpy()
        restored: Pixels = self.task.restore({"restored": tiles}, samples)
        return restored

    def _notes(self, trained: Sequence[Trained]) -> tuple[str, ...]:
        options = self.options
        notes = [
            f"Pictures are judged whole, through the tiles that are served, after they were made {options.scale} times "
            "smaller (by box, bilinear or bicubic resizing), had one text or several drawn over them, and went through "
            f"JPEG of quality {options.lowest_quality} to {options.highest_quality}, in that order and as the hash of "
            "the file's name decides. 'Clean' pictures were made smaller by bicubic resizing and nothing else.",
            "PSNR is over the three colours and all pixels, SSIM has a Gaussian window of 11 pixels; both are means "
            "over pictures. Bicubic is Pillow's bicubic resizing of the same picture.",
            f"The distance is LPIPS-style and not LPIPS: features of torchvision's {options.backbone} at "
            f"{len(self.perception.ends)} depths, brought to length one, their squared difference averaged over the "
            "places and the depths, without learnt weights. The same network is in the loss, so expect less of a gain "
            "by another measure.",
            f"Split: {self.folder.split}. The best epoch is the one of the least distance on the validation pictures; "
            "nothing was chosen on the test pictures.",
            self._backbone_note(),
        ]
        if len(trained) > 1:
            gains = ", ".join(f"{each.scores['gain']:.2f}" for each in trained)
            notes.append(f"Gain of each of {len(trained)} seeds, in dB: {gains}; the first is published.")
        return tuple(notes)

    def _strips(self, served: nn.Module, judged: Sequence[Judged], count: int = 6) -> tuple[Figure, ...]:
        order = np.argsort([each.gain for each in judged], kind="stable").tolist()
        middle = max(0, (len(order) - count) // 2)
        chosen = {"Worst first": order[:count], "The middle of the field": order[middle : middle + count]}
        note = "Sorted by how many dB were gained over bicubic resizing; a part of each picture, around a text."
        shown = [
            Figure(title, strips([self._strip(served, index, judged[index]) for index in indices]), note)
            for title, indices in chosen.items()
        ]
        return (*shown, self._augmentation_figure())

    def _strip(self, served: nn.Module, index: int, judged: Judged) -> Strip:
        worse, wanted = self.held_out.pair(index)
        return Strip(
            sent=worse.pixels,
            bicubic=self._resized(worse.pixels),
            restored=self._restored(served, worse.pixels),
            original=wanted,
            caption=f"{judged.name[:40]}: JPEG {judged.quality}, PSNR {judged.bicubic.psnr:.1f} bicubic, "
            f"{judged.restored.psnr:.1f} restored",
            middle=middle_of(worse.covered),
        )

    def validation_inputs(self, count: int) -> Arrays:
        """Tiles from all over the validation pictures."""
        pictures = min(count, len(self.held_out))
        each = -(-count // pictures)
        chosen = np.linspace(0, len(self.held_out) - 1, pictures).round().astype(int)
        tiles = [self.task.tiling.cut(self.held_out.pair(int(index))[0].pixels)[:each] for index in chosen]
        return {"image": np.concatenate(tiles)[:count]}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Parts of validation pictures, one for each kind of file; the first has the most text over it."""
        pairs = [self.held_out.pair(index)[0] for index in range(min(16, len(self.held_out)))]
        side = self.task.tile * 3 // 4
        parts = sorted(
            (worse.part(0, 0, side, side) for worse in pairs), key=lambda part: part.covered.mean(), reverse=True
        )
        asked: tuple[dict[str, Any], ...] = ({}, {"format": "jpeg", "quality": 80}, {"format": "webp", "quality": 60})
        return self.task, [_sent(part) | fields for part, fields in zip(parts, asked, strict=False)]


def _task(options: Any) -> SuperResolution:
    """The task with these options. Raises CannotTrain where one cannot be."""
    if options.scale not in (2, 3, 4):
        raise CannotTrain(f"--scale {options.scale}: pictures can be made 2, 3 or 4 times as large.")
    if options.crop < 40 or options.crop % 8:
        raise CannotTrain(f"--crop {options.crop}: give a multiple of 8, 40 or more.")
    if options.tile < 64:
        raise CannotTrain(f"--tile {options.tile}: give 64 or more.")
    if not 1 <= options.lowest_quality <= options.highest_quality <= 100:
        raise CannotTrain("--lowest-quality and --highest-quality must lie in 1…100, in that order.")
    return SuperResolution(scale=options.scale, tile=options.tile)


def _whole(network: nn.Module, pixels: Pixels, runtime: Runtime) -> Pixels:
    """The whole picture through the network at once, as pixels."""
    with torch.no_grad(), runtime.autocast():
        (levels,) = ServedGenerator(network)(torch.tensor(pixels[np.newaxis]).to(runtime.device))
    restored: Pixels = levels[0].cpu().numpy()
    return restored


def _distance(perception: Perception, got: Pixels, wanted: Pixels) -> float:
    device = perception.mean.device
    pair = (torch.tensor(each[np.newaxis]).to(device).permute(0, 3, 1, 2).float() / 255 for each in (got, wanted))
    with torch.no_grad():
        return float(perception.distance(*pair))


def _sent(part: Degraded) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(part.pixels).save(file, "JPEG", quality=90)
    return {"image": base64.b64encode(file.getvalue()).decode("ascii")}
