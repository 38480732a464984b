#!/usr/bin/env bash
# Pins every dependency with its hashes, for every platform and Python from 3.11 on; run it after pyproject.toml has changed.
# Add --upgrade to take newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    local out=$1; shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        --no-annotate "${upgrade[@]}" "$@" --output-file "requirements/$out"
}
upgrade=("$@")
compile dev.txt pyproject.toml --extra service --extra training --extra heif --group tests --group lint
upgrade=()
compile serve.txt pyproject.toml --extra service --constraint requirements/dev.txt
compile train.txt pyproject.toml --extra training --constraint requirements/dev.txt
compile serve-gpu.txt pyproject.toml --extra service-gpu
echo uv | compile uv.txt -
