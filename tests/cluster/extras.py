"""The manifests of helm/extras, checked by the API server against the custom kinds that they are made for."""

from collections.abc import Iterator
from pathlib import Path

from tests.cluster.api import ApiError
from tests.cluster.control_plane import EXTRA_CRDS, Cluster, install_crds
from tests.cluster.helm import documents
from tests.cluster.lifecycle import namespace
from tests.cluster.report import Recorder


def run_extras(cluster: Cluster, folder: Path, recorder: Recorder) -> None:
    """Validate every manifest strictly, without creating it; the kinds are installed first, if there are any."""
    files = manifest_files(folder)
    if not files:
        return
    with recorder.step("extras", "-", "custom kinds") as step:
        step.detail = ", ".join(install_crds(cluster.api, EXTRA_CRDS).values())
    with namespace(cluster.api, "extras") as place:
        for path in files:
            name = f"extras/{path.relative_to(folder)}"
            with recorder.case(name, "-"), recorder.step(name, "-", "accepted") as step:
                step.detail = ", ".join(_validate(cluster, path, place))


def manifest_files(folder: Path) -> list[Path]:
    """Return the manifests in a folder and those in it: files with an apiVersion, and no templates."""
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    return [path for path in files if "apiVersion:" in path.read_text("utf-8")]


def _validate(cluster: Cluster, path: Path, place: str) -> Iterator[str]:
    api = cluster.api
    problems = []
    for item in documents(path.read_text("utf-8")):
        api.warnings.clear()
        name = f"{item['kind']} {item['metadata'].get('name') or item['metadata'].get('generateName')}"
        try:
            item["metadata"].pop("namespace", None)  # The one that a user chooses may not exist here.
            api.create(item, place, dry_run=True)
        except ApiError as error:
            problems.append(f"{name}: {error.message}")
        problems += [f"{name}: warning: {text}" for text in api.warnings]
        yield name
    assert not problems, "; ".join(problems)
