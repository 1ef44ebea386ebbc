#!/usr/bin/env bash
# Run all tests, style and type checks. Arguments go to pytest: `tests/run.sh -m "not slow"`, `tests/run.sh -k config`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
fedspleen_setup
exec .venv/bin/python -m pytest "$@"
