"""`python -m service fetch --from URL --to DIR NAME/VERSION …`: put published models into a folder.

What an init container runs. Unless every file is the published one it ends with an error, and no server is started.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from service.fetching.download import Downloader
from service.fetching.errors import CannotFetch
from service.fetching.sources import parse_source
from service.process.bearer_tokens import UnusableToken, read_token
from tasks.manifest import NAME_PATTERN, VERSION_PATTERN
from tasks.system_errors import describe_os_error

_SHA256 = re.compile(r"[0-9a-f]{64}")
_EPILOG = (
    "s3:// reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL; without "
    "the first two, requests are not signed, as a public bucket needs it. A download that was interrupted is resumed."
)


def fetch_models(arguments: Sequence[str]) -> int:
    """Run the command line; return 0 if all versions are there, 1 if one is not, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        versions = [_parse_version(text) for text in options.versions]
        checksums = _parse_checksums(options.sha256, options.versions)
        token = read_token(Path(options.token_file)) if options.token_file else ""
        source = parse_source(options.source, os.environ, token)
    except (CannotFetch, OSError, UnusableToken) as error:
        return _fail(error, 2)
    deadline = time.monotonic() + options.max_seconds
    downloader = Downloader(source, Path(options.to), attempts=options.attempts, deadline=deadline)
    for (name, version), path in zip(versions, options.versions, strict=True):
        try:
            fetched = downloader.fetch(name, version, checksums.get(path, ""))
        except (CannotFetch, OSError) as error:
            return _fail(error, 1)
        except KeyboardInterrupt:
            print("fetch: interrupted; the same command resumes.", file=sys.stderr)
            return 130
        what = "fetched and verified" if fetched.is_new else "already there, verified"
        print(f"{path}: {fetched.files} files, {fetched.size / 1e6:,.1f} MB, {what}: {fetched.folder}", flush=True)
    return 0


def _fail(error: Exception, code: int) -> int:
    text = describe_os_error(error) if isinstance(error, OSError) else str(error)
    print(f"fetch: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service fetch",
        description="Download published versions of models, and check every file against its manifest.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("versions", nargs="+", metavar="NAME/VERSION", help="versions to download, as clothing/3")
    parser.add_argument(
        "--from", dest="source", required=True, metavar="URL", help="https://HOST/FOLDER or s3://BUCKET/FOLDER"
    )
    parser.add_argument("--to", default="models", metavar="DIR", help="the folder of models; default: models")
    parser.add_argument(
        "--sha256",
        default="",
        metavar="NAME/VERSION=SHA256,…",
        help="SHA-256 of manifest.json, which has those of all other files; without it, whoever can write to the "
        "source decides what is served",
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="a file with a token for HTTP, sent as 'Authorization: Bearer TOKEN'"
    )
    parser.add_argument("--attempts", type=_positive, default=5, metavar="N", help="attempts for each file; default: 5")
    parser.add_argument(
        "--max-seconds", type=_positive, default=3600, metavar="N", help="time for the whole download; default: 3600"
    )
    return parser


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"must be a positive integer, not '{text}'")
    return int(text)


def _parse_version(text: str) -> tuple[str, str]:
    name, _, version = text.partition("/")
    if not re.fullmatch(NAME_PATTERN, name) or not re.fullmatch(VERSION_PATTERN, version):
        raise CannotFetch(f"'{text}' is not NAME/VERSION, for example clothing/3.")
    return name, version


def _parse_checksums(text: str, versions: Sequence[str]) -> dict[str, str]:
    checksums = {}
    for pair in filter(None, text.split(",")):
        path, _, sha256 = pair.strip().partition("=")
        if path not in versions or not _SHA256.fullmatch(sha256.lower()):
            raise CannotFetch(
                f"--sha256 must be NAME/VERSION=SHA256,… with versions that are downloaded and 64 hexadecimal digits, "
                f"not '{pair}'."
            )
        checksums[path] = sha256.lower()
    return checksums
