#!/usr/bin/env bash
# Once, and again to copy what was prepared since: a bucket whose folders can be renamed in one
# step, which checkpoints rely on.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
: "${BUCKET:?the name of your bucket, without gs://}"
# The prepared sets, made on any machine by `eenet data prepare`: the repository's data/, or another.
: "${DATA:=$(dirname "$0")/../../data}"
[ -d "$DATA" ] || { echo "there is no folder '$DATA': prepare a data set, or give DATA" >&2; exit 2; }
if gcloud storage buckets describe "gs://$BUCKET" >/dev/null 2>&1; then
  gcloud alpha storage buckets describe "gs://$BUCKET" --raw \
    --format='value(hierarchicalNamespace.enabled)' | grep -qi true || {
    echo "'$BUCKET' has no hierarchical namespace, which can't be added: give another BUCKET" >&2
    exit 2
  }
else
  gcloud storage buckets create "gs://$BUCKET" --project "$PROJECT" --location "${ZONE%-*}" \
    --uniform-bucket-level-access --enable-hierarchical-namespace
fi
gcloud storage rsync --recursive "$DATA" "gs://$BUCKET/data"
