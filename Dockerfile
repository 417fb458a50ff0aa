# The image of every pod: head, workers, submitter, autoscaler. Needs BuildKit (the default of docker build).
#   docker build --tag hcs-ray:0.1.0 .
# An own mirror: --build-arg BASE_IMAGE=..., --build-arg PIP_INDEX_URL=...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS requirements
# GPU or CPU is decided by torch's wheel alone. For Linux the package index has the CUDA build (several GB, it
# needs only the driver of the node and runs on CPUs too); for a small CPU image put torch's CPU wheel of the
# version in constraints.txt into wheels/ beside this file: pip then prefers it.
COPY pyproject.toml README.md constraints.txt wheels* /requirements/

FROM ${BASE_IMAGE}
# KubeRay calls bash, ray and python3 in these containers; the probes of older operators call wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 hcs \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home hcs

# Into the base's own Python, not a virtual environment: some operators start login shells, which reset PATH to
# the system's folders. First what constraints.txt pins, in a layer that changes of our code leave alone.
ARG PIP_INDEX_URL
RUN --mount=type=bind,from=requirements,source=/requirements,target=/requirements,rw \
    pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: --no-binary=hcs-ray \
        --constraint=/requirements/constraints.txt --find-links=/requirements /requirements
RUN --mount=type=bind,target=/source,rw \
    pip install --no-cache-dir --root-user-action=ignore --no-deps --force-reinstall /source

# The commit of this code, for the records of the stages: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION
ENV HCS_RAY_REVISION=${REVISION} \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Numeric, so that Kubernetes can verify runAsNonRoot; the same as in k8s/base/rayjob.yaml.
USER 10001:10001
WORKDIR /home/hcs
RUN hcs-ray --help && ray --version
CMD ["hcs-ray", "--help"]
