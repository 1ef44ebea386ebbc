#!/usr/bin/env bash
# Run a whole federation on this machine. `./simulate.sh --help` lists the options.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"
. scripts/setup.sh
fedspleen_setup
# the paths in the arguments are those of whoever called
cd "$OLDPWD"
exec "$here/.venv/bin/fedspleen" simulate "$@"
