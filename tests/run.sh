#!/usr/bin/env bash
# Tests that need no GPU: makes .venv if missing, installs, checks the style, runs pytest in phases. tests/README.md: more.
#   ./tests/run.sh [--quick | --all] [pytest arguments]
#     (nothing)   what every push runs: each claim once, a covering set where there are many layouts
#     --quick     style, tests/unit, and those of tests/parallel that start little
#     --all       everything: all layouts, moments, sizes and kills; an hour more
#   tests/unit, tests/parallel/test_parity.py::NAME ...   these only
#   -k layouts, -x, --durations=50, -s ...                handed to pytest in every phase
# Every phase runs, whatever came of the one before; the last lines add them up.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=(tests/parallel/test_{conversion,families,layouts,logprobs,offload,weights}.py tests/slurm/test_scripts.py)
mode=push unit=() others=() options=()
for argument in "$@"; do
    case $argument in
        -h | --help) sed -n '2,/^# Every/s/^# \?//p' tests/run.sh && exit ;;
        --quick | --all) mode=${argument#--} ;;
        tests/unit*) unit+=("$argument") ;;
        tests | tests/*) others+=("$argument") ;;
        *) options+=("$argument") ;;
    esac
done
if ((${#unit[@]} + ${#others[@]} == 0)); then
    unit=(tests/unit) others=(tests --ignore=tests/unit)
    [[ $mode == quick ]] && others=("${quick[@]}")
fi
[[ $mode == all ]] && options=(--all "${options[@]}")

./launch/install.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-trackers.txt
start=$SECONDS status=0 stopped='' tally=$(mktemp)
trap 'rm -f "$tally"' EXIT
trap 'stopped=1' INT
phase() {  # phase NAME pytest-arguments...
    [[ -z $stopped ]] || return 0
    local begin=$SECONDS result=0
    .venv/bin/python -m pytest -m "not gpu and not contract" --durations=20 --durations-min=1 --tally="$tally" "${@:2}" "${options[@]}" ||
        result=$?
    ((result == 0 || result == 5)) || status=$result  # 5: nothing of this phase was asked for
    echo "tests: $1 took $((SECONDS - begin)) s"
}
.venv/bin/ruff check . && .venv/bin/ruff format --check . || status=$?
((${#unit[@]})) && phase "tests/unit" -n 2 --dist loadfile "${unit[@]}"
((${#others[@]})) && phase "the other folders" "${others[@]}"

[[ -z $stopped ]] || status=130
seconds=$((SECONDS - start))
counts=$(awk '{ n[$1] += $2; if (!seen[$1]++) names[++last] = $1 }
    END { for (i = 1; i <= last; i++) if (n[names[i]]) printf "%s%d %s", (k++ ? ", " : ""), n[names[i]], names[i] }' "$tally")
[[ $status != 0 || $counts == *" passed"* ]] || status=5
echo "==== ${counts:-no tests ran} in $seconds.00s ===="
if ((status == 0)); then
    echo "tests: all passed in $seconds s (without the installation)"
else
    echo "tests: FAILED with exit status $status after $seconds s" >&2
fi
exit "$status"
