#!/usr/bin/env bash
# Makes a stand-in for the base image python:3.12-slim, for a machine that reaches no registry of images.
#
#   tests/image/make_base_image.sh [TAG] [PYTHON]
#
# TAG     the image's name; default localhost/python:slim
# PYTHON  a Python that was built with a prefix of its own (by pyenv, or from source); default: python3
#
# The system is Debian from its archive (debootstrap), without documentation and translations, as in Docker's slim images;
# Python is copied to /usr/local. Needs root, buildah and debootstrap. Then: make image PYTHON_IMAGE=localhost/python:slim
set -euo pipefail
tag=${1:-localhost/python:slim}
python=${2:-python3}
suite=${SUITE:-bookworm}
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | head -n 1)}
libraries=ca-certificates,libbz2-1.0,libffi8,liblzma5,libreadline8,libsqlite3-0,libssl3,libuuid1,netbase,tzdata,zlib1g

work=$(mktemp -d)
container=
clean() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null
    rm -rf "$work"
}
trap clean EXIT

prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$prefix" = /usr ]; then
    echo "$python belongs to the system and cannot be copied; name one of pyenv, or built from source." >&2
    exit 2
fi

debootstrap --variant=minbase --include="$libraries" "$suite" "$work/root" "$mirror"
rm -rf "$work/root"/var/cache/apt/* "$work/root"/var/lib/apt/lists/* "$work/root"/var/log/* \
    "$work/root"/usr/share/{doc,man,info,locale,lintian} "$work/root"/tmp/*
find "$work/root/dev" -mindepth 1 -delete  # The device files; a container gets its own.

# Without its tests, what compiles against it, and the packages that were installed into it.
tar -C "$prefix" --exclude=__pycache__ --exclude='*.a' --exclude=include --exclude=share --exclude=idlelib \
    --exclude=tkinter --exclude=turtledemo --exclude="lib/python$version/test" --exclude="lib/python$version/config-*" \
    --exclude="lib/python$version/site-packages" -c lib bin | tar -C "$work/root/usr/local" -x
find "$work/root/usr/local/bin" -mindepth 1 ! -name 'python*' -delete
rm -f "$work"/root/usr/local/bin/python*-config "$work"/root/usr/local/bin/*-gdb.py
mkdir "$work/root/usr/local/lib/python$version/site-packages"
ln -sf "python$version" "$work/root/usr/local/bin/python3"
ln -sf "python$version" "$work/root/usr/local/bin/python"
chroot "$work/root" ldconfig
chroot "$work/root" python -m ensurepip >/dev/null
chroot "$work/root" python -c 'import bz2, ctypes, lzma, sqlite3, ssl, zlib'
find "$work/root/usr/local" -name __pycache__ -prune -exec rm -rf {} +

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root" / >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 \
    --cmd python3 "$container"
buildah commit --quiet --format docker "$container" "$tag" >/dev/null
echo "$tag: Debian $suite, Python $version, $(du -sm "$work/root" | cut -f1) MB"
