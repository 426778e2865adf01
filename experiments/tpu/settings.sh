# What the other scripts use; every value can be given in the environment instead. BUCKET, the
# name of your bucket without gs://, and REPOSITORY, where this one is cloned from, are asked for by
# the scripts that use them.
: "${PROJECT:?your Google Cloud project}"
: "${ZONE:=us-west4-a}"
: "${NAME:=eenet}"
# v5litepod-8 is one host of eight v5e chips, v5litepod-256 the 16x16 slice of 32 hosts.
: "${TYPE:=v5litepod-8}"
: "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${CONFIG:=imagenet_msdnet35}"
# Of 3.11 or later, which the image of the runtime may not have.
: "${PYTHON:=python3.11}"
# A branch, a commit or a tag of this repository.
: "${REVISION:=main}"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --project "$PROJECT" --zone "$ZONE" --worker=all \
    --command="$1"
}
