# Sourced by simulate.sh and tests/run.sh from the project's root: makes .venv as requirements.lock says, once.
# PYTHON=/path/to/python3.12 chooses the interpreter; PIP_* variables work as pip documents them.

# What .venv must have been made from. Moving the folder breaks a virtual environment, so the place is part of it.
fedspleen_wanted() {
    cat requirements.lock pyproject.toml scripts/setup.sh | cksum
    pwd
}

fedspleen_is_set_up() {
    [ "$(cat .venv/fedspleen-installed 2>/dev/null)" = "$(fedspleen_wanted)" ]
}

# Run a command that ends when this script is told to end; the shell alone would leave it behind.
fedspleen_attended() {
    local child status
    "$@" &
    child=$!
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM HUP
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 130' INT
    wait "$child" && status=0 || status=$?
    trap - TERM HUP INT
    return "$status"
}

fedspleen_setup() {
    local python candidate
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                python=$candidate
                break
            fi
        done
    fi
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "fedspleen needs Python 3.10 or later${python:+, and $python is not}; install it, or set PYTHON=/path/to/python" >&2
        return 1
    fi
    if fedspleen_is_set_up; then
        return 0
    fi
    echo "setting up .venv (once; downloads several hundred MB) ..."
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
    fedspleen_attended "$python" -m venv --clear .venv || return 1
    if ! fedspleen_attended .venv/bin/python -m pip install -qq --disable-pip-version-check --requirement requirements.lock ||
        ! fedspleen_attended .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .; then
        echo "the packages could not be installed; pip's message is above. Start again once its cause is mended." >&2
        return 1
    fi
    fedspleen_wanted >.venv/fedspleen-installed
}
