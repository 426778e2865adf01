#!/usr/bin/env bash
# Once: a bucket whose folders can be renamed in one step, which checkpoints rely on.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
gcloud storage buckets create "gs://$BUCKET" --project "$PROJECT" --location "${ZONE%-*}" \
  --uniform-bucket-level-access --enable-hierarchical-namespace
# The prepared set, made on any machine by `eenet data prepare … --data-dir data`.
gcloud storage rsync --recursive data "gs://$BUCKET/data"
