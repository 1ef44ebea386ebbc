#!/usr/bin/env bash
# Run all tests, style and type checks. Arguments go to pytest: `tests/run.sh -m "not slow"`, `tests/run.sh -k config`.
# Files of tests are spread over the cores, four at most, those with slow tests first; `tests/run.sh -n 0` runs them one
# after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
fedspleen_setup
exec .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
