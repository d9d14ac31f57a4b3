#!/usr/bin/env bash
# Checks the whole tree: format, lint, shell scripts, tests.
#
#   launch/check.sh          everything
#   launch/check.sh lint     all but the tests
#   launch/check.sh quick    tests without whole runs in subprocesses
#
# Needs: pip install -e '.[test]'; shellcheck where it is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lint() {
  python -m ruff format --check .
  python -m ruff check .
  bash -n launch/*.sh launch/slurm.sbatch .ci/run
  if command -v shellcheck >/dev/null; then
    shellcheck launch/*.sh launch/slurm.sbatch .ci/run
  else
    echo 'shellcheck is not installed: shell scripts were only parsed'
  fi
}

case "${1:-all}" in
  all) lint && python -m pytest ;;
  lint) lint ;;
  quick) python -m pytest -m 'not slow and not oracle' ;;
  *)
    echo "unknown argument: got '$1', choices are all, lint, quick" >&2
    exit 2
    ;;
esac
