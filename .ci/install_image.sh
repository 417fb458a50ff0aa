#!/usr/bin/env bash
# What the image holds, by pip, in two steps that are two layers of the Dockerfile; tests/test_image.py runs them in
# a new virtual environment.
#   install_image.sh packages FOLDER   everything that FOLDER/pyproject.toml wants, as FOLDER/constraints.txt pins it
#   install_image.sh hcs_ray FOLDER    hcs_ray itself, from the sources in FOLDER
# Whatever pip reads (PIP_INDEX_URL, PIP_NO_CACHE_DIR, ...) holds. TORCH_INDEX_URL names an index with the build of
# torch that is wanted; without it torch comes from where all else does, and wheels in FOLDER/wheels are preferred.
set -euo pipefail
step=${1:?packages or hcs_ray} folder=${2:?a folder}

install() {
  python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore "$@"
}

case $step in
  packages)
    wanted=$(mktemp)
    trap 'rm -f "$wanted"' EXIT
    python - "$folder/pyproject.toml" >"$wanted" <<'END'
import pathlib, sys, tomllib

print(*tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"]["dependencies"], sep="\n")
END
    pinned=(--only-binary=:all: --constraint "$folder/constraints.txt")
    if [ -d "$folder/wheels" ]; then
      pinned+=(--find-links "$folder/wheels")
    fi
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
      install "${pinned[@]}" --index-url "$TORCH_INDEX_URL" torch
    fi
    install "${pinned[@]}" --requirement "$wanted"
    ;;
  hcs_ray)
    install --no-deps --force-reinstall "$folder"
    ;;
  *)
    echo "install_image.sh: $step: packages or hcs_ray" >&2
    exit 2
    ;;
esac
