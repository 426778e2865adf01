#!/usr/bin/env bash
# On every host: the bucket as a folder, and this repository with the TPU's JAX.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
: "${BUCKET:?the name of your bucket, without gs://}"
: "${REPOSITORY:?where this repository is cloned from}"
on_all_hosts "
  set -e
  command -v gcsfuse >/dev/null || { echo 'install gcsfuse first: docs/tpu.md'; exit 1; }
  command -v '$PYTHON' >/dev/null || { echo 'install $PYTHON first, with venv: docs/tpu.md'; exit 1; }
  mkdir -p bucket
  mountpoint -q bucket || gcsfuse --implicit-dirs '$BUCKET' bucket
  [ -d eenet_jax ] || git clone -q '$REPOSITORY' eenet_jax
  cd eenet_jax && git fetch -q --tags
  # Of a branch what it is by now; a commit or a tag as it is.
  git checkout -q --detach 'origin/$REVISION' 2>/dev/null || git checkout -q --detach '$REVISION'
  '$PYTHON' -m venv .venv
  .venv/bin/pip install -q -e '.[tpu,imagenet]' -c constraints.txt
  ln -sfn ~/bucket/data data
"
