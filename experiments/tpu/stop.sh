#!/usr/bin/env bash
# SIGTERM, as when a machine is taken back: every host saves, and exits with status 75.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
on_all_hosts "cd eenet_jax && kill -TERM \$(cat train.pid)"
