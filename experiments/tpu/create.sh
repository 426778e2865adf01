#!/usr/bin/env bash
# Ask for a slice, and wait till it is there. SPOT=1 asks for one that may be taken back.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" \
  --project "$PROJECT" --zone "$ZONE" --accelerator-type "$TYPE" --runtime-version "$RUNTIME" \
  ${SPOT:+--spot}
until gcloud compute tpus queued-resources describe "$NAME" --project "$PROJECT" --zone "$ZONE" \
  --format='value(state.state)' | grep -qx ACTIVE; do
  sleep 30
done
