#!/usr/bin/env bash
# Give the slice back; the bucket, with the data and the checkpoints, stays.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
gcloud compute tpus queued-resources delete "$NAME" --project "$PROJECT" --zone "$ZONE" --force --quiet
