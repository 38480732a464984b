"""`make image`: build an image of the Dockerfile, and write its bill of materials next to it.

    python -m tests.image.build [--target cpu|cuda|train|ray] [--image NAME] [--cuda 12] [--models baked]

Needs Docker, Podman or Buildah, and nothing that has to be installed with pip.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.image.engine import ROOT, Engine, EngineError, find_engine

TARGETS = ("cpu", "cuda", "train", "ray")
PYTHON_IMAGE = "python:3.12-slim"
_EPOCH = "315532800"
"""1980, in seconds since 1970: the time of all files."""


def main(arguments: Sequence[str]) -> int:
    """Build an image and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.image.build", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what the image is for; default: cpu")
    parser.add_argument("--image", default="", help="its name; default: sevenfold:TARGET")
    parser.add_argument("--cuda", choices=("13", "12"), default="13", help="CUDA of the target cuda; default: 13")
    parser.add_argument("--models", choices=("mounted", "baked"), default="mounted", help="baked: with models/ inside")
    parser.add_argument("--python-image", default=PYTHON_IMAGE, help=f"the base, best with a digest; {PYTHON_IMAGE}")
    parser.add_argument("--engine", default="", help="docker, podman or buildah; default: the first that is usable")
    parser.add_argument(
        "--sbom", type=Path, default=None, help="the bill of materials; default: TARGET.cdx.json in build/"
    )
    options = parser.parse_args(arguments)
    image = options.image or f"sevenfold:{options.target}"
    try:
        engine = find_engine(options.engine)
        values = build_arguments(options.python_image) | {"CUDA": options.cuda, "MODELS": options.models}
        engine.build(options.target, image, arguments=values, labels=image_labels(options.python_image))
        sbom = options.sbom or ROOT / "build" / f"{options.target}.cdx.json"
        write_sbom(engine, options.target, sbom, values)
        print(f"{image}: {engine.size(image) / 1e6:.0f} MB, built with {engine.name}; bill of materials: {sbom}")
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build_arguments(python_image: str) -> dict[str, str]:
    """Return the arguments of the build.

    All files get one time, which is not that of the commit: a layer whose files have not changed stays the same layer.
    """
    return {
        "PYTHON_IMAGE": python_image,
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", _EPOCH),
    }


def image_labels(python_image: str) -> dict[str, str]:
    """Return what is known of the image, from the project and its last commit, by names of `LABELS`."""
    committed = _git("log", "-1", "--format=%ct")
    base, _, digest = python_image.partition("@")
    labels = {
        "version": tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"],
        "revision": _git("rev-parse", "HEAD"),
        "source": os.environ.get("SOURCE", ""),
        "created": datetime.fromtimestamp(int(committed), UTC).isoformat() if committed else "",
        "base.name": base,
        "base.digest": digest,
    }
    return {name: text for name, text in labels.items() if text}


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # Not a clone: what the commit would say stays unknown.
        return ""


def write_sbom(engine: Engine, target: str, path: Path, arguments: dict[str, str]) -> None:
    """Write the bill of materials of a target: the Python packages in its image, as CycloneDX."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine.build(f"sbom-{target}", arguments=arguments, output=path.parent)
    (path.parent / "sbom.cdx.json").replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
