#!/usr/bin/env bash
# The end of every host's log; the numbers are in the bucket's metrics.jsonl and tensorboard/.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
: "${BUCKET:?the name of your bucket, without gs://}"
on_all_hosts "hostname; tail -n 3 eenet_jax/train.log"
gcloud storage cat "gs://$BUCKET/runs/$CONFIG/metrics.jsonl" | tail -n 3
