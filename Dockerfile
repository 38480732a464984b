# The images: cpu and cuda serve models with ONNX Runtime, ray does as a node of a Ray cluster, train trains with torch.
# docs/image.md describes them.
#
#   docker build --target cpu --tag sevenfold:cpu .
#   docker build --target cuda --build-arg CUDA=12 --tag sevenfold:cuda12 .
#
# The base image can be pinned: --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim


# uv, and an empty environment that is copied into the images. A network that signs TLS itself gives its certificates as
# the secret `ca`, which no layer contains.
FROM ${PYTHON_IMAGE} AS builder
SHELL ["/bin/sh", "-euc"]
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/uv.txt /build/
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python -m venv /opt/uv; \
    /opt/uv/bin/pip install --quiet --require-hashes --requirement /build/uv.txt; \
    python -m venv --without-pip /opt/venv


FROM builder AS dependencies-cpu
COPY requirements/serve.txt requirements/tracing.txt /build/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    /opt/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes \
        --requirement /build/serve.txt --requirement /build/tracing.txt

# In layers that change less often than the ones after them, so that a node pulls only what is new to it. Compiled without
# the times of files: a read-only image cannot compile later, and two builds are equal.
FROM dependencies-cpu AS layers-cpu
COPY requirements/split_layers.sh /build/
RUN /build/split_layers.sh

FROM ${PYTHON_IMAGE} AS compiled-app
WORKDIR /app
COPY LICENSE ./
COPY tasks ./tasks
COPY service ./service
RUN python -m compileall -q --invalidation-mode unchecked-hash .


# mounted: the image has no models, they come as a volume at /models. baked: it has those of the folder models/.
FROM ${PYTHON_IMAGE} AS models
ARG MODELS=mounted
RUN --mount=type=bind,source=models,target=/build/models \
    case "$MODELS" in \
        mounted) mkdir /models ;; \
        baked) cp -r /build/models /models ;; \
        *) echo "MODELS must be mounted or baked, not $MODELS." >&2; exit 1 ;; \
    esac


# What the images that serve have in common: all but their packages.
FROM ${PYTHON_IMAGE} AS serving
# A name for the number: some libraries ask for it.
RUN echo 'sevenfold:x:10001:10001::/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'sevenfold:x:10001:' >> /etc/group
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 \
    SEVENFOLD_HOST=0.0.0.0 SEVENFOLD_PORT=8080 SEVENFOLD_MODELS=/models
WORKDIR /app
EXPOSE 8080 8082
STOPSIGNAL SIGTERM
# Kubernetes has probes of its own; this is for Docker and Compose.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "service.process.health_check"]
ENTRYPOINT ["python", "-m", "service"]


FROM serving AS cpu
COPY --from=layers-cpu /layers/runtime /
COPY --from=layers-cpu /layers/packages /
COPY --from=models /models /models
COPY --from=compiled-app /app /app
LABEL org.opencontainers.image.title="Sevenfold" \
    org.opencontainers.image.description="Predictions over HTTP, on the CPU" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001


FROM builder AS dependencies-cuda
# 13 needs an NVIDIA driver from 580 on, 12 one from 525 on.
ARG CUDA=13
COPY requirements/serve-gpu.txt requirements/serve-cuda12.txt requirements/tracing.txt /build/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    case "$CUDA" in \
        13) requirements=/build/serve-gpu.txt ;; \
        12) requirements=/build/serve-cuda12.txt ;; \
        *) echo "CUDA must be 13 or 12, not $CUDA." >&2; exit 1 ;; \
    esac; \
    /opt/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes \
        --requirement "$requirements" --requirement /build/tracing.txt

FROM dependencies-cuda AS layers-cuda
COPY requirements/split_layers.sh /build/
RUN /build/split_layers.sh

FROM serving AS cuda
# What the NVIDIA container toolkit puts into the container: the driver, and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=layers-cuda /layers/nvidia /
COPY --from=layers-cuda /layers/runtime /
COPY --from=layers-cuda /layers/packages /
COPY --from=models /models /models
COPY --from=compiled-app /app /app
LABEL org.opencontainers.image.title="Sevenfold" \
    org.opencontainers.image.description="Predictions over HTTP, on an NVIDIA GPU" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001


FROM builder AS dependencies-train
COPY requirements/train.txt /build/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    /opt/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes --requirement /build/train.txt

FROM dependencies-train AS layers-train
COPY requirements/split_layers.sh /build/
RUN /build/split_layers.sh

FROM ${PYTHON_IMAGE} AS compiled-training
WORKDIR /app
COPY LICENSE ./
COPY tasks ./tasks
COPY training ./training
RUN python -m compileall -q --invalidation-mode unchecked-hash .

FROM ${PYTHON_IMAGE} AS train
RUN echo 'sevenfold:x:10001:10001::/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'sevenfold:x:10001:' >> /etc/group \
    && install -d -o 10001 -g 10001 /workspace
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Data, runs and models are written to folders here: mount a volume.
WORKDIR /workspace
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "training"]
COPY --from=layers-train /layers/nvidia /
COPY --from=layers-train /layers/runtime /
COPY --from=layers-train /layers/packages /
COPY --from=compiled-training /app /app
LABEL org.opencontainers.image.title="Sevenfold training" \
    org.opencontainers.image.description="Training, on the CPU or NVIDIA GPUs" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001


FROM builder AS dependencies-ray
COPY requirements/ray.txt /build/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    /opt/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes --requirement /build/ray.txt

FROM dependencies-ray AS layers-ray
COPY requirements/split_layers.sh /build/
RUN /build/split_layers.sh

# A node of a Ray cluster, whose commands KubeRay gives: see helm/extras/ray. Ray's proxy and its replicas are in it.
FROM serving AS ray
ENV PYTHONPATH=/app RAY_USAGE_STATS_ENABLED=0
EXPOSE 8000
HEALTHCHECK NONE
ENTRYPOINT []
COPY --from=layers-ray /layers/runtime /
COPY --from=layers-ray /layers/packages /
COPY --from=models /models /models
COPY --from=compiled-app /app /app
LABEL org.opencontainers.image.title="Sevenfold" \
    org.opencontainers.image.description="Predictions over HTTP, as replicas of Ray Serve" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001


# The bills of materials, made where their tool gets into no image: --target sbom-cpu --output type=local,dest=DIR
FROM builder AS sbom-tool
COPY requirements/sbom.txt /build/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    python -m venv --without-pip /opt/sbom; \
    /opt/uv/bin/uv pip install --quiet --python /opt/sbom/bin/python --require-hashes --requirement /build/sbom.txt

FROM dependencies-cpu AS listed-cpu
COPY --from=sbom-tool /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file /sbom.cdx.json \
    /opt/venv/bin/python

FROM scratch AS sbom-cpu
COPY --from=listed-cpu /sbom.cdx.json /

FROM dependencies-cuda AS listed-cuda
COPY --from=sbom-tool /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file /sbom.cdx.json \
    /opt/venv/bin/python

FROM scratch AS sbom-cuda
COPY --from=listed-cuda /sbom.cdx.json /

FROM dependencies-train AS listed-train
COPY --from=sbom-tool /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file /sbom.cdx.json \
    /opt/venv/bin/python

FROM scratch AS sbom-train
COPY --from=listed-train /sbom.cdx.json /

FROM dependencies-ray AS listed-ray
COPY --from=sbom-tool /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file /sbom.cdx.json \
    /opt/venv/bin/python

FROM scratch AS sbom-ray
COPY --from=listed-ray /sbom.cdx.json /
