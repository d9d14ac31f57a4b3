#!/usr/bin/env bash
# Runs dhat_jax in several processes on this machine, as several hosts would:
# to try a multi-host run before paying for one.
#
#   launch/local_processes.sh [--dry-run] [--processes=2] [--cpu_devices=2] \
#     --config=configs/digits.py --workdir=runs/digits ...
#
# Everything but the options above goes to `python -m dhat_jax.main`. Each line
# of output is prefixed with its process's number. SIGTERM, SIGHUP and Ctrl-C are
# passed on (the run saves itself); if one process fails, the others are stopped.
#
# Needs: pip install -e . ; bash 5.1 or newer.
# --dry-run prints the commands and starts nothing.
set -euo pipefail

processes=2 cpu_devices=2 dry_run=false
arguments=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=true ;;
    --processes=*) processes=${argument#*=} ;;
    --cpu_devices=*) cpu_devices=${argument#*=} ;;
    -h | --help)
      sed -n '2,/^set -e/{/^set -e/!p}' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
      exit
      ;;
    *) arguments+=("$argument") ;;
  esac
done
for number in "$processes" "$cpu_devices"; do
  if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
    echo "error: got '$number', expected a number of processes or devices" >&2
    exit 2
  fi
done

port=$(python -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')

# command_of INDEX: puts the command of one process into the array `command`.
command_of() {
  command=(
    python -m dhat_jax.main "${arguments[@]}"
    --cpu_devices="$cpu_devices" --coordinator_address="127.0.0.1:$port"
    --num_processes="$processes" --process_id="$1"
  )
}

if $dry_run; then
  for ((index = 0; index < processes; index++)); do
    command_of "$index"
    printf '%q ' "${command[@]}"
    echo
  done
  exit
fi

pids=()
forward() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap forward TERM INT HUP

for ((index = 0; index < processes; index++)); do
  command_of "$index"
  # Threads enough for the collectives of all simulated devices.
  NPROC=$((4 * cpu_devices)) "${command[@]}" \
    > >(sed -u "s/^/[$index] /") 2>&1 &
  pids+=($!)
done

while ((${#pids[@]} > 0)); do
  status=0
  wait -n -p ended "${pids[@]}" || status=$?
  # A signal interrupts the wait: then nothing has ended.
  [[ -n ${ended:-} ]] || continue
  remaining=()
  for pid in "${pids[@]}"; do
    [[ $pid == "$ended" ]] || remaining+=("$pid")
  done
  pids=("${remaining[@]}")
  if ((status != 0)); then
    echo "error: a process ended with code $status, so the others have to" >&2
    for pid in "${pids[@]}"; do
      timeout 60 tail --pid="$pid" -f /dev/null || kill -9 "$pid"
    done
    exit "$status"
  fi
done
