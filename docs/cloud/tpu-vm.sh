#!/usr/bin/env bash
# Train on a slice of TPUs of Google Cloud that may be taken away at any time, until it is done.
#
#   export NAME=jaxhist ZONE=us-west4-a TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite
#   export SETUP='sudo apt-get install --yes python3.11-venv nfs-common &&
#       sudo mount -t nfs 10.0.0.2:/share /mnt' TFDS_DATA_DIR=/mnt/tfds
#   docs/cloud/tpu-vm.sh gpt train gpt2-xl --run.mesh.fsdp 64 --run.workdir /mnt/runs/gpt2-xl
#
# Run it in the checkout, on a machine that has gcloud and stays on. SETUP is for each machine of the
# slice: it installs Python, and mounts the directory that all of them share. Where training ends
# with an error, so does this. At the end the slice is deleted in any case, for it costs money.
set -uo pipefail
: "${NAME:?a name for the slice}" "${ZONE:?where it is}" "${TYPE:?such as v5litepod-16}"
: "${VERSION:?of its software, such as v2-alpha-tpuv5-lite}"
: "${SETUP:?what installs Python and mounts the shared directory on each machine}"
: "${TFDS_DATA_DIR:?where the data sets are on the slice}"
experiment=$1
shift

tpu() {
    local verb=$1
    shift
    gcloud compute tpus tpu-vm "$verb" "$NAME" --zone="$ZONE" "$@"
}

everywhere() { tpu ssh --worker=all --command="$1"; }

create() {
    tpu create --accelerator-type="$TYPE" --version="$VERSION" --spot &&
        git archive --prefix=jaxhist/ --output=/tmp/jaxhist.tar HEAD &&
        gcloud compute tpus tpu-vm scp /tmp/jaxhist.tar "$NAME:" --zone="$ZONE" --worker=all &&
        everywhere "$SETUP && tar xf jaxhist.tar &&
            make -C jaxhist install ACCELERATOR=tpu PYTHON=python3.11"
}

ready() { [ "$(tpu describe --format='value(state)' 2>/dev/null)" = READY ]; }

delete() { tpu delete --quiet 2>/dev/null; }

trap delete EXIT
command="rm -f ~/code; cd jaxhist; TFDS_DATA_DIR=$TFDS_DATA_DIR"
command+=" .venv/bin/python -m experiments.$experiment${*:+ ${*@Q}} --run.distributed"
prepared=
while true; do
    if ! ready || [ -z "$prepared" ]; then
        delete
        prepared=
        if ! create; then # none is free, or it was taken away again
            sleep "${WAIT:-60}"
            continue
        fi
        prepared=yes
    fi
    # gcloud does not pass on every exit code, so it is kept in a file. None: the connection was
    # lost, with the slice or without it.
    everywhere "$command; echo \$? > ~/code"
    code=$(tpu ssh --worker=0 --command='cat ~/code' 2>/dev/null | tail -n 1)
    case "$code" in
        75) ;;
        '') sleep "${WAIT:-60}" ;;
        *) if ready; then exit "$code"; fi ;;
    esac
done
