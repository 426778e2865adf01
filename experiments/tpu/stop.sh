#!/usr/bin/env bash
# SIGTERM, as when a machine is taken back: every host saves, and exits with status 75. Waits for it.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
on_all_hosts "
  cd eenet_jax || exit
  [ -e train.pid ] || { echo 'nothing was trained here' >&2; exit 1; }
  # Who is reached late may have stopped with the others.
  kill -TERM \$(cat train.pid) 2>/dev/null || echo 'no longer training; the log ends with:'
  while kill -0 \$(cat train.pid) 2>/dev/null; do sleep 1; done
  sleep 1; tail -n 1 train.log
"
