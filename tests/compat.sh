#!/usr/bin/env bash
# The parity tests on the newer of the two Megatron-Cores that are supported: 0.19.2, which needs Python 3.12.
# Installs into .venv-compat what requirements.txt names for that Python.
#   PYTHON=/path/to/python3.12 ./tests/compat.sh [pytest arguments]
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=${PYTHON:-python3.12}
command -v "$PYTHON" >/dev/null || { echo "compat: no $PYTHON; set PYTHON to a Python 3.12 or later" >&2; exit 2; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || {
    echo "compat: $("$PYTHON" --version) gets the older Megatron-Core; set PYTHON to a Python 3.12 or later" >&2; exit 2; }
./launch/install.sh .venv-compat
python=.venv-compat/bin/python
echo "compat: $("$python" --version), $("$python" -m pip list --format freeze 2>/dev/null | grep megatron-core)"
exec "$python" -m pytest --all tests/parallel/test_parity.py "$@"
