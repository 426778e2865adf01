#!/usr/bin/env bash
# Run a command on every host: on_all.sh 'COMMAND'.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
on_all_hosts "${1:?a command}"
