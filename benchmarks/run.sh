#!/usr/bin/env bash
# All benchmarks of benchmarks/suite.txt, one after the other; writes benchmarks/RESULTS.md. See benchmarks/README.md.
#   benchmarks/run.sh                    every one; those that are done already in this folder are not run again
#   benchmarks/run.sh transfer decoding  only these
#   benchmarks/run.sh --again            forget what is done, then every one
#   benchmarks/run.sh --note "TEXT"      a line for RESULTS.md about the conditions
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
exec "$python" -m benchmarks.run "$@"
