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
compile dev.txt pyproject.toml --extra service --extra training --extra tracing --extra heif \
    --group tests --group load --group lint
upgrade=()
compile serve.txt pyproject.toml --extra service --constraint requirements/dev.txt
compile train.txt pyproject.toml --extra training --constraint requirements/dev.txt
compile load.txt pyproject.toml --group load --constraint requirements/dev.txt
compile tracing.txt pyproject.toml --extra tracing --constraint requirements/dev.txt
compile serve-gpu.txt pyproject.toml --extra service-gpu --constraint requirements/serve.txt
compile serve-cuda12.txt pyproject.toml --extra service-cuda12 --constraint requirements/serve.txt
compile ray.txt pyproject.toml --extra service --extra ray --constraint requirements/dev.txt
compile sbom.txt --group sbom
echo uv | compile uv.txt -
