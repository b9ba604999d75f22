#!/usr/bin/env bash
# A quarter of an hour of a GPU, put to use: every part by itself, each with its time limit, figures written as they come.
#   ./tests/gpu/prove.sh [--dry] [--out FOLDER] [--wheels FOLDER] [PART ...]
#     (nothing)         all parts, within 8 minutes; --list names them, with their limits in seconds
#     --dry             every part on a CPU, at sizes that say nothing: shows that it runs
#     --out FOLDER      results.jsonl (a line a figure) and results.md (the table); default runs/prove-TIME
#     --wheels FOLDER   a machine that has torch, and no network: unpacks these wheels beside it first
# PYTHON names the interpreter; default: .venv's, else python3. Neither vLLM nor Ray is needed.
# Exit status: 0 every part is ok, 1 some are not, 2 no such part.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

total=470  # seconds in all; a part gets what is left of them, at most its limit
parts=(    # name, limit in seconds, module and its arguments; the shortest answers first, what may be cut short last
    "logprobs 60 logprobs"
    "step-7b 90 step 7b bf16"
    "cuda_ipc 60 carriers cuda_ipc"
    "nccl 90 carriers collective"
    "step-32b 90 step 32b bf16"
    "smoke-bf16 60 smoke bf16"
    "smoke-blockwise 60 smoke fp8-blockwise"
    "smoke-tensorwise 60 smoke fp8-tensorwise"
    "smoke-delayed 60 smoke fp8-delayed"
    "smoke-mxfp8 60 smoke fp8-mxfp8"
    "step-7b-fp8 90 step 7b fp8-blockwise"
    "resume 90 resume"
    "marked 300 marked"
)
dry='' out='' wheels='' wanted=()
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set/s/^# \?//p' tests/gpu/prove.sh && exit ;;
        --list) for part in "${parts[@]}"; do cut -d' ' -f1,2 <<<"$part"; done && exit ;;
        --dry) dry=1 ;;
        --out) out=${2:?--out wants a folder} && shift ;;
        --wheels) wheels=${2:?--wheels wants a folder} && shift ;;
        *) wanted+=("$1") ;;
    esac
    shift
done
for name in "${wanted[@]}"; do
    [[ " ${parts[*]%% *} " == *" $name "* ]] || { echo "prove: no part $name; --list names them" >&2; exit 2; }
done

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PROVE_DRY=${dry:-0}
if [[ -n $wheels ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    libraries=$("$python" -c "import glob, site; print(':'.join(d for s in site.getsitepackages() for d in glob.glob(s + '/nvidia/*/lib')))")
    export PYTHONPATH=$site:$PYTHONPATH LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
out=${out:-runs/prove-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out"
export PROVE_OUT=$out
"$python" -m tests.gpu.prove.report "$out"
failed=0 begin=$SECONDS
for part in "${parts[@]}"; do
    read -r name limit module <<<"$part"
    [[ ${#wanted[@]} == 0 || " ${wanted[*]} " == *" $name "* ]] || continue
    left=$((total - (SECONDS - begin)))
    if [[ -n $dry ]]; then limit=$((10 * limit)); else limit=$((limit < left ? limit : left)); fi
    if ((limit < 10)); then
        "$python" -m tests.gpu.prove.report "$out" "$name" 75 0 "$limit"
        failed=$((failed + 1))
        continue
    fi
    echo "== $name (at most $limit s)"
    start=$SECONDS status=0
    # shellcheck disable=SC2086  # the module and its arguments
    PROVE_PART=$name timeout --kill-after=5 "$limit" "$python" -W ignore -m tests.gpu.prove.$module || status=$?
    "$python" -m tests.gpu.prove.report "$out" "$name" "$status" "$((SECONDS - start))" "$limit"
    ((status == 0)) || failed=$((failed + 1))
done
cat "$out/results.md"
echo "prove: $failed parts not ok, $((SECONDS - begin)) s; $out/results.md"
exit "$((failed > 0))"
