"""What is said of restored pictures in figures: metrics, tables and failures, always against bicubic resizing."""

from collections.abc import Mapping, Sequence

from tasks.manifest import Metric
from training.core.results import Table
from training.learners.super_resolution.metrics import Judged, Quality, Summary, summary

_BANDS = ((0, 25), (26, 40), (41, 55), (56, 100))
Sets = Mapping[str, Sequence[Judged]]


def metrics(damaged: Sets, clean: Sets) -> tuple[Metric, ...]:
    """The gains over bicubic resizing on validation pictures, what they are gains of, and those on test pictures."""
    first, plain = summary(damaged["validation"]), summary(clean["validation"])
    protocol = f"{first.count} validation pictures, smaller, with text and JPEG"
    found = [
        ("psnr_gain", first.psnr_gain, f"dB over bicubic, {protocol}"),
        ("text_psnr_gain", first.text_gain, "the same, of the pixels under text"),
        ("other_psnr_gain", first.other_gain, "the same, of the pixels that no text covered"),
        ("clean_psnr_gain", plain.psnr_gain, f"dB over bicubic, {plain.count} validation pictures only made smaller"),
        ("psnr", first.restored.psnr, f"dB, {protocol}"),
        ("ssim", first.restored.ssim, protocol),
        ("distance", first.restored.distance, f"LPIPS-style, less is better, {protocol}"),
        ("distance_gain", first.bicubic.distance - first.restored.distance, "bicubic's distance less the restored"),
    ]
    for name in list(damaged)[1:]:
        found += _of_a_test(name, summary(damaged[name]), summary(clean[name]))
    return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in found)


def _of_a_test(name: str, damaged: Summary, clean: Summary) -> list[tuple[str, float, str]]:
    short, protocol = name.lower(), f"test: {damaged.count} pictures of {name}"
    return [
        (f"{short}_psnr_gain", damaged.psnr_gain, f"dB over bicubic, {protocol}"),
        (f"{short}_text_psnr_gain", damaged.text_gain, f"the same, of the pixels under text, {protocol}"),
        (f"{short}_clean_psnr_gain", clean.psnr_gain, f"dB over bicubic, {protocol}, only made smaller"),
        (f"{short}_distance_gain", damaged.bicubic.distance - damaged.restored.distance, f"LPIPS-style, {protocol}"),
    ]


def by_set(damaged: Sets, clean: Sets) -> Table:
    """Each set, damaged and clean; in a cell: restored / bicubic."""
    rows = [(f"{name}, damaged", *_cells(summary(judged))) for name, judged in damaged.items()]
    rows += [(f"{name}, clean", *_cells(summary(judged))) for name, judged in clean.items()]
    header = ("pictures", "n", "PSNR", "SSIM", "distance", "PSNR under text", "PSNR elsewhere")
    return Table("Restored / bicubic", header, tuple(rows), "PSNR in dB; of the distance, less is better.")


def by_quality(judged: Sequence[Judged], name: str) -> Table:
    """The same, by bands of the quality of the JPEG that the pictures went through."""
    rows = []
    for low, high in _BANDS:
        members = [each for each in judged if each.quality is not None and low <= each.quality <= high]
        if members:
            best = max(each.quality or 0 for each in members)
            worst = min(each.quality or 0 for each in members)
            rows.append((f"{worst} to {best}", *_cells(summary(members))))
    header = ("JPEG quality", "n", "PSNR", "SSIM", "distance", "PSNR under text", "PSNR elsewhere")
    return Table(f"By JPEG quality, {name}: restored / bicubic", header, tuple(rows))


def _cells(found: Summary) -> tuple[str, ...]:
    def pair(name: str, digits: int) -> str:
        values = (getattr(quality, name) for quality in (found.restored, found.bicubic))
        return " / ".join("–" if value is None else f"{value:.{digits}f}" for value in values)

    names = (("psnr", 2), ("ssim", 3), ("distance", 4), ("under_text", 2), ("elsewhere", 2))
    return (str(found.count), *(pair(name, digits) for name, digits in names))


def failures(damaged: Sequence[Judged], clean: Sequence[Judged]) -> tuple[str, ...]:
    """Where it is of no use, or does harm, in figures."""
    worst = min(damaged, key=lambda each: each.gain)
    worse, worse_clean = (sum(each.gain < 0 for each in judged) for judged in (damaged, clean))
    under = [each for each in damaged if each.restored.under_text is not None]
    found = [
        f"Its least gain on a damaged picture is {worst.gain:+.2f} dB ({worst.name}, JPEG quality {worst.quality}).",
        f"{worse} of {len(damaged)} damaged and {worse_clean} of {len(clean)} clean pictures are further from the "
        "original than after bicubic resizing.",
    ]
    if under:
        hardest = min(under, key=lambda each: _under(each.restored))
        found.append(
            f"Under text it guesses: on average {summary(under).restored.under_text:.1f} dB there, and "
            f"{_under(hardest.restored):.1f} dB at worst ({hardest.name})."
        )
    return tuple(found)


def _under(quality: Quality) -> float:
    return quality.under_text if quality.under_text is not None else 0.0
