#!/usr/bin/env bash
# Every test that needs no GPU: makes .venv if missing, installs, checks the style, runs pytest.
#   ./tests/run.sh [pytest arguments]      e.g. tests/unit, or -k layouts
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

./launch/install.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-trackers.txt
start=$SECONDS status=0
.venv/bin/ruff check . && .venv/bin/ruff format --check . || status=$?
.venv/bin/python -m pytest -m "not gpu" "$@" || status=$?
if ((status == 0)); then
    echo "tests: all passed in $((SECONDS - start)) s (without the installation)"
else
    echo "tests: FAILED with exit status $status after $((SECONDS - start)) s" >&2
fi
exit "$status"
