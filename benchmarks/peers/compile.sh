#!/usr/bin/env bash
# Pins what the servers need, with hashes, for every Python from 3.11 on; run it after a requirements.in has changed.
# ONNX Runtime, Pillow and the tokenizer are the versions of the service, so that only the servers differ.
# Names restrict it to some servers; UPGRADE=1 takes newer versions of everything else.
set -euo pipefail
cd "$(dirname "$0")/servers"
shared=$(mktemp)
trap 'rm -f "$shared"' EXIT
sed -nE 's/^((onnxruntime|pillow|tokenizers)==[^ ]+).*/\1/p' ../../../requirements/serve.txt > "$shared"
for name in "${@:-*}"; do
    for folder in $name; do
        python=3.11
        [ "$folder" = pytriton ] && python=3.12  # Its Triton was built for this one.
        uv pip compile --quiet --universal --python-version "$python" --generate-hashes --no-emit-index-url --no-header \
            --no-annotate ${UPGRADE:+--upgrade} --constraint "$shared" "$folder/requirements.in" \
            --output-file "$folder/requirements.txt"
    done
done
