#!/usr/bin/env bash
# Ask for a slice, and wait till it is there. SPOT=1 asks for one that may be taken back.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
spot=()
[ "${SPOT:-0}" = 0 ] || spot=(--spot)
gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" \
  --project "$PROJECT" --zone "$ZONE" --accelerator-type "$TYPE" --runtime-version "$RUNTIME" \
  "${spot[@]}"
while true; do
  state=$(gcloud compute tpus queued-resources describe "$NAME" --project "$PROJECT" \
    --zone "$ZONE" --format='value(state.state)')
  case "$state" in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      echo "the request '$NAME' is $state: see \`gcloud compute tpus queued-resources describe\`," \
        "run delete.sh, and ask again" >&2
      exit 1
      ;;
  esac
  sleep 30
done
