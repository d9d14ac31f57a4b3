#!/usr/bin/env bash
# Trains with dhat_jax on a Cloud TPU: one VM (v4-8, v5litepod-8, v6e-8, ...) or
# all the VMs of a pod (v4-32, ...).
#
#   launch/tpu_vm.sh [--dry-run] create  NAME ZONE TYPE [--spot]
#   launch/tpu_vm.sh [--dry-run] install NAME ZONE
#   launch/tpu_vm.sh [--dry-run] doctor  NAME ZONE [OPTION ...]
#   launch/tpu_vm.sh [--dry-run] run     NAME ZONE --config=... --workdir=...
#   launch/tpu_vm.sh [--dry-run] fetch   NAME ZONE WORKDIR
#   launch/tpu_vm.sh [--dry-run] delete  NAME ZONE
#
# `install` copies this folder (without runs/) to every VM and installs it there,
# with Python 3.12, JAX 0.12 and the libtpu that belongs to it; again, it brings
# the new code and leaves the VM's runs. `doctor` (one VM, no pod) compares
# training steps and attacks with the CPU's values before anything long starts;
# its JSON is then in runs/doctor, for `fetch`. `run` starts
# the same command on all VMs; JAX finds the others. On a pod --workdir has
# to be on a disk that all VMs share (Filestore); on one VM any folder will do.
# A spot VM may vanish: create it again and `run` the same command, which
# continues from the last checkpoint if the workdir is on a disk that stays.
#
# Needs: gcloud, logged in, with a project and TPU quota.
# --dry-run prints the commands and runs none.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jax=${JAX_VERSION:-0.12.0.1}

usage() {
  sed -n '2,/^set -e/{/^set -e/!p}' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
  exit "$1"
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
[[ ${1:-} == -h || ${1:-} == --help ]] && usage 0
if (($# < 3)); then
  echo "error: got '$*', expected an action, NAME and ZONE" >&2
  usage 2 >&2
fi
action=$1 name=$2 zone=$3
shift 3

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus tpu-vm "$@" --zone="$zone"; }

case "$action" in
  create)
    type=${1:?TYPE, for example v4-8}
    shift
    # The VM's image, as Cloud TPU names them for JAX.
    case "$type" in
      v6e-*) image=v2-alpha-tpuv6e ;;
      v5p-*) image=v2-alpha-tpuv5 ;;
      v5litepod-*) image=v2-alpha-tpuv5-lite ;;
      *) image=tpu-ubuntu2204-base ;;
    esac
    version=${TPU_VERSION:-$image}
    tpu create "$name" --accelerator-type="$type" --version="$version" "$@"
    ;;
  install)
    tpu ssh "$name" --worker=all --command='rm -rf dhat_jax.new'
    tpu scp --recurse "$root" "$name:dhat_jax.new" --worker=all
    # What runs have left on the VM stays, and its environment.
    # The image's own Python is older than what the project needs.
    tpu ssh "$name" --worker=all --command="mkdir -p dhat_jax &&\
 rm -rf dhat_jax.new/runs dhat_jax.new/.venv dhat_jax/dhat_jax &&\
 cp -a dhat_jax.new/. dhat_jax && rm -rf dhat_jax.new &&\
 cd dhat_jax && pip install uv &&\
 python3 -m uv venv --allow-existing --python 3.12 .venv &&\
 python3 -m uv pip install --python .venv/bin/python -e '.[tpu]' 'jax[tpu]==$jax'"
    ;;
  doctor)
    tpu ssh "$name" --worker=0 --command="cd dhat_jax &&\
 exec .venv/bin/python -m experiments.accelerator doctor\
 --workdir=runs/doctor --out=runs/doctor/doctor.json $(printf '%q ' "$@")"
    ;;
  run)
    tpu ssh "$name" --worker=all --command="cd dhat_jax &&\
 exec .venv/bin/python -m dhat_jax.main --distributed $(printf '%q ' "$@")"
    ;;
  fetch)
    workdir=${1:?WORKDIR}
    run mkdir -p "$workdir"
    tpu scp --recurse "$name:dhat_jax/$workdir/*" "$workdir" --worker=0
    ;;
  delete) tpu delete "$name" --quiet ;;
  *)
    echo "error: got '$action', choices are create, install, doctor,\
 run, fetch, delete" >&2
    exit 2
    ;;
esac
