#!/usr/bin/env bash
# Write requirements.lock anew from pyproject.toml, for Python 3.10 and later. Needs `uv` (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
{
    echo "# Every package of fedspleen and of its tests, pinned; written by scripts/lock.sh, read by scripts/setup.sh."
    echo "# torch 2.13.0 is its CPU build where the package index offers one, else the CUDA build, which brings its"
    echo "# own exactly pinned CUDA packages; they are left out here so that a CPU machine does not fetch them."
    uv pip compile pyproject.toml --extra export --extra large --group dev --universal --python-version 3.10 --quiet \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        --constraint <(echo "torch==2.13.0") |
        grep -Ev '^(nvidia-|cuda-|triton==)' |
        grep -Ev "sys_platform == 'win32'"
    echo "setuptools==84.2.1"
} | awk '!seen[$0]++' >requirements.lock.new
mv requirements.lock.new requirements.lock
