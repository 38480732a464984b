#!/bin/sh
# Compiles the environment of an image, and parts it into layers by how often they change and how large they are:
# a node that has pulled CUDA, or the runtime, does not pull it again with a new version of something else.
# Bytecode without the times of its sources: two builds are equal, and a read-only image could not compile it later.
set -eu
environment=/opt/venv
packages=$(echo "$environment"/lib/python*/site-packages)
python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$packages"

take() {  # take LAYER PATTERN…
    layer=/layers/$1$packages
    shift
    mkdir -p "$layer"
    for pattern; do
        find "$packages" -mindepth 1 -maxdepth 1 -iname "$pattern" -exec mv {} "$layer/" \;
    done
}
take nvidia 'nvidia*' 'triton*' 'cuda*'
take runtime 'onnxruntime*' 'numpy*' 'torch*' 'scipy*' 'sklearn' 'scikit_learn*' 'polars*' '_polars*'
mkdir -p /layers/packages/opt
mv "$environment" /layers/packages/opt/
