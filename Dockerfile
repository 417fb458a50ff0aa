# The image of every pod: head, workers, submitter, autoscaler, ship-logs. docs/image.md says how to build, check and
# mirror it. Needs BuildKit (the default of docker build).
#   docker build --tag hcs-ray:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
# Python 3.11 or newer, on Debian; by digest or from a mirror as you like.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS requirements
# wheels/ beside this file may hold wheels that are preferred to the index's. It need not be there.
COPY pyproject.toml constraints.txt wheels* /requirements/wheels/
RUN mv /requirements/wheels/pyproject.toml /requirements/wheels/constraints.txt /requirements/

FROM ${BASE_IMAGE}
# KubeRay calls bash, ray and python3 in these containers; the probes of older operators call wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 hcs \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home hcs

# Into the base's own Python, not a virtual environment: some operators start login shells, which reset PATH to
# the system's folders. Wheels only, so no compiler is ever here. First what constraints.txt pins, in a layer that
# changes of our code leave alone.
#   PIP_INDEX_URL     an index of your own for everything
#   TORCH_INDEX_URL   an index with the build of torch that is wanted: for CPUs (small), or for a CUDA version.
#                     Without it torch is the package index's, on Linux the one with CUDA, which also runs on CPUs.
#   --secret id=pip.conf,src=...   what is not for the image's history, as an index's password
ARG PIP_INDEX_URL
ARG TORCH_INDEX_URL
ARG PIP_NO_CACHE_DIR=1
RUN --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    --mount=type=bind,source=.ci/install_image.sh,target=/install_image.sh \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    bash /install_image.sh packages /requirements
RUN --mount=type=bind,target=/source,rw \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    bash /source/.ci/install_image.sh hcs_ray /source

ARG VERSION=0.1.0
# The commit of this code, also for the records of the stages.
ARG REVISION
LABEL org.opencontainers.image.title="hcs_ray" \
      org.opencontainers.image.description="High content screens on Ray: every pod of a study's jobs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV HCS_RAY_REVISION=${REVISION} \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Numeric, so that Kubernetes can verify runAsNonRoot; the same as in k8s/base/rayjob.yaml.
USER 10001:10001
WORKDIR /home/hcs
RUN hcs-ray --help && ray --version
CMD ["hcs-ray", "--help"]
