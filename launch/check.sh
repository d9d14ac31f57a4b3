#!/usr/bin/env bash
# Checks the whole tree: format, lint, shell scripts, tests.
#
#   launch/check.sh          everything
#   launch/check.sh lint     all but the tests
#   launch/check.sh quick    tests without whole runs in subprocesses
#   launch/check.sh docs     builds the docs; warnings are errors
#   launch/check.sh package  builds sdist and wheel in dist/, and checks them
#
# Needs: pip install -e '.[test]', for the docs '.[docs]', for the package
# '.[package]'; shellcheck where it is installed.
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

docs() {
  python docs/tools/figure.py --check
  python docs/tools/rows.py --check
  python docs/tools/places.py --check
  python docs/tools/terminal.py --check
  python docs/tools/tables.py --check
  python docs/tools/config_reference.py --check
  python docs/tools/scaling.py --check
  # From scratch: a page that has not changed would not be checked again.
  rm -rf docs/_build
  python -m sphinx -q -W --keep-going -b html docs docs/_build/html
}

package() {
  rm -rf build dist
  python -m build
  python -m twine check --strict dist/*
}

case "${1:-all}" in
  all) lint && python -m pytest ;;
  lint) lint ;;
  quick) python -m pytest -m 'not slow and not oracle and not compile' ;;
  docs) docs ;;
  package) package ;;
  *)
    echo "unknown argument: got '$1', choices are all, lint, quick, docs, package" >&2
    exit 2
    ;;
esac
