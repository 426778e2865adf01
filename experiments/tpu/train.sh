#!/usr/bin/env bash
# Start, or go on: the same command on every host. Further arguments are the config's settings.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
on_all_hosts "
  cd eenet_jax
  nohup .venv/bin/eenet train '$CONFIG' --distributed --out ~/bucket/runs/'$CONFIG' $* \
    >train.log 2>&1 </dev/null &
"
