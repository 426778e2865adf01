#!/usr/bin/env bash
# Start, or go on: the same command on every host. Further arguments are the config's settings.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
# Where one host trains already, none begins; the log ends with the exit status.
on_all_hosts "
  # Without it, every host would have checkpoints of its own.
  mountpoint -q bucket || { echo 'the bucket is not mounted: run install.sh' >&2; exit 1; }
  cd eenet_jax
  if [ -e train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then
    echo \"training already, as process \$(cat train.pid)\" >&2; exit 1
  fi
  nohup sh -c '
    .venv/bin/eenet train \"\$@\" & echo \$! >train.pid
    wait \$!; echo \"exit status \$?\"
  ' train '$CONFIG' --distributed --out ~/bucket/runs/'$CONFIG' ${*@Q} >train.log 2>&1 </dev/null &
  sleep 1
"
