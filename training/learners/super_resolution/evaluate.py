"""Evaluation of restored images: metrics, tables and failures, relative to bicubic resizing."""

from collections.abc import Mapping, Sequence

from tasks.manifest import Metric
from training.core.results import Table
from training.learners.super_resolution.metrics import ImageResult, Quality, QualitySummary, summarise

_QUALITY_BANDS = ((0, 25), (26, 40), (41, 55), (56, 100))
_QUALITY_COLUMNS = ("n", "PSNR", "SSIM", "distance", "PSNR under text", "PSNR elsewhere")
ResultSets = Mapping[str, Sequence[ImageResult]]
"""Results by the name of the image set; the first set is `validation`, the others are test sets."""


def compute_metrics(degraded: ResultSets, clean: ResultSets) -> tuple[Metric, ...]:
    """Return the gains over bicubic resizing on the validation images, the absolute values, and the test gains."""
    validation, validation_clean = summarise(degraded["validation"]), summarise(clean["validation"])
    images = "validation image" if validation.count == 1 else "validation images"
    samples = f"{validation.count:,} {images}, downscaled, with text and JPEG"
    clean_samples = f"{validation_clean.count:,} {images}, only downscaled"
    distance_gain = validation.bicubic.distance - validation.restored.distance
    rows = [("psnr_gain", validation.psnr_gain, f"dB over bicubic, {samples}")]
    if validation.restored.text_psnr is not None:
        rows.append(("text_psnr_gain", validation.text_gain, f"dB over bicubic for pixels under text, {samples}"))
    rows += [
        ("other_psnr_gain", validation.other_gain, f"dB over bicubic for pixels without text, {samples}"),
        ("clean_psnr_gain", validation_clean.psnr_gain, f"dB over bicubic, {clean_samples}"),
        ("psnr", validation.restored.psnr, f"dB, {samples}"),
        ("ssim", validation.restored.ssim, samples),
        ("distance", validation.restored.distance, f"LPIPS-style, lower is better, {samples}"),
        ("distance_gain", distance_gain, f"reduction of the LPIPS-style distance from bicubic, {samples}"),
    ]
    for name in list(degraded)[1:]:
        rows += _test_rows(name, summarise(degraded[name]), summarise(clean[name]))
    return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in rows)


def _test_rows(name: str, degraded: QualitySummary, clean: QualitySummary) -> list[tuple[str, float, str]]:
    prefix, samples = name.lower(), f"test: {degraded.count} images of {name}"
    distance_gain = degraded.bicubic.distance - degraded.restored.distance
    return [
        (f"{prefix}_psnr_gain", degraded.psnr_gain, f"dB over bicubic, {samples}"),
        (f"{prefix}_text_psnr_gain", degraded.text_gain, f"dB over bicubic for pixels under text, {samples}"),
        (f"{prefix}_clean_psnr_gain", clean.psnr_gain, f"dB over bicubic, {samples}, only downscaled"),
        (f"{prefix}_distance_gain", distance_gain, f"reduction of the LPIPS-style distance from bicubic, {samples}"),
    ]


def table_by_set(degraded: ResultSets, clean: ResultSets) -> Table:
    """Return the quality on each set, degraded and clean; a cell holds restored / bicubic."""
    rows = [(f"{name}, degraded", *_cells(summarise(results))) for name, results in degraded.items()]
    rows += [(f"{name}, clean", *_cells(summarise(results))) for name, results in clean.items()]
    note = "PSNR in dB; a lower distance is better."
    return Table("Restored / bicubic", ("images", *_QUALITY_COLUMNS), tuple(rows), note)


def table_by_jpeg_quality(results: Sequence[ImageResult], name: str) -> Table:
    """Return the quality by bands of the JPEG quality; a cell holds restored / bicubic."""
    rows = []
    for low, high in _QUALITY_BANDS:
        band = [
            (result.jpeg_quality, result)
            for result in results
            if result.jpeg_quality is not None and low <= result.jpeg_quality <= high
        ]
        if band:
            qualities = [quality for quality, _ in band]
            cells = _cells(summarise([result for _, result in band]))
            rows.append((f"{min(qualities)} to {max(qualities)}", *cells))
    note = "" if rows else "No image was compressed as JPEG."
    return Table(f"By JPEG quality, {name}: restored / bicubic", ("JPEG quality", *_QUALITY_COLUMNS), tuple(rows), note)


def _cells(summary: QualitySummary) -> tuple[str, ...]:
    def format_pair(name: str, digits: int) -> str:
        values = (getattr(quality, name) for quality in (summary.restored, summary.bicubic))
        return " / ".join("–" if value is None else f"{value:.{digits}f}" for value in values)

    columns = (("psnr", 2), ("ssim", 3), ("distance", 4), ("text_psnr", 2), ("other_psnr", 2))
    return (str(summary.count), *(format_pair(name, digits) for name, digits in columns))


def describe_gains(degraded: Sequence[ImageResult]) -> str:
    """Say over how many of the degraded images the model gains, and how much it gains at least."""
    worst = min(degraded, key=lambda result: result.gain)
    images = "validation image" if len(degraded) == 1 else "validation images"
    better = sum(result.gain > 0 for result in degraded)
    if not better:
        return f"On none of the {len(degraded):,} degraded {images} is the PSNR higher than after bicubic resizing."
    if better < len(degraded):
        return f"On {better:,} of {len(degraded):,} degraded {images}, the PSNR is higher than after bicubic resizing."
    every = "the only" if len(degraded) == 1 else f"all {len(degraded):,}"
    return (
        f"On {every} degraded {images}, the PSNR is higher than after bicubic resizing, by at least {worst.gain:.2f} "
        f"dB ({_describe_image(worst)})."
    )


def describe_failures(degraded: Sequence[ImageResult], clean: Sequence[ImageResult]) -> tuple[str, ...]:
    """Describe where the model does harm, and how well it guesses what lies under text."""
    worst = min(degraded, key=lambda result: result.gain)
    with_text = [result for result in degraded if result.restored.text_psnr is not None]
    sentences = []
    if worst.gain < 0:
        sentences.append(f"The smallest gain on a degraded image is {worst.gain:+.2f} dB ({_describe_image(worst)}).")
    counts = [
        f"{worse:,} of {len(results):,} {kind} {'image' if len(results) == 1 else 'images'}"
        for kind, results in (("degraded", degraded), ("clean", clean))
        if (worse := sum(result.gain < 0 for result in results))
    ]
    if counts:
        verb = "is" if len(counts) == 1 and counts[0].startswith("1 ") else "are"
        sentences.append(f"{' and '.join(counts)} {verb} further from the original than after bicubic resizing.")
    if with_text:
        hardest = min(with_text, key=lambda result: _text_psnr(result.restored))
        average = f"{summarise(with_text).restored.text_psnr:.1f} dB"
        spread = f" on average, and {_text_psnr(hardest.restored):.1f} dB at worst" if len(with_text) > 1 else ""
        sentences.append(f"The content under text is guessed: the PSNR there is {average}{spread} ({hardest.name}).")
    return tuple(sentences)


def _describe_image(result: ImageResult) -> str:
    return result.name if result.jpeg_quality is None else f"{result.name}, JPEG quality {result.jpeg_quality}"


def _text_psnr(quality: Quality) -> float:
    return quality.text_psnr if quality.text_psnr is not None else 0.0
