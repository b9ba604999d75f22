#!/usr/bin/env bash
# The CUDA path against the CUDA wheels themselves, without a GPU (README.md, beside this): makes their environment once, then pytest.
#   ./tests/contract/run.sh [--if-there] [pytest arguments]
#     --if-there   only where the environment has been made before; else says so, and that is all (what .ci/run wants)
# The environment (9.3 GB) lies in ~/.cache/megatron_nft/contract-HASH, HASH being that of requirements-gpu.txt; launch/install_gpu.sh
# makes it, with Python 3.12 (PYTHON=...). MEGATRON_NFT_CONTRACT_ENV=FOLDER names another one, which is used as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

only_if_there=
case ${1:-} in
    -h | --help) sed -n '2,/^set/s/^# \?//p' tests/contract/run.sh && exit ;;
    --if-there) only_if_there=1 && shift ;;
esac
cache=${XDG_CACHE_HOME:-$HOME/.cache}/megatron_nft
venv=${MEGATRON_NFT_CONTRACT_ENV:-$cache/contract-$(sha256sum <requirements-gpu.txt | head -c 12)}
if [[ -n ${MEGATRON_NFT_CONTRACT_ENV:-} && ! -x $venv/bin/python ]]; then
    echo "contract: MEGATRON_NFT_CONTRACT_ENV = $venv has no bin/python; name an environment of launch/install_gpu.sh, or none" >&2
    exit 2
elif [[ -z ${MEGATRON_NFT_CONTRACT_ENV:-} && ! -f $venv/.installed ]]; then
    if [[ -n $only_if_there ]]; then
        echo "contract: NOT RUN, there is no $venv; ./tests/contract/run.sh makes it (10 to 25 minutes, 9.3 GB)"
        exit
    fi
    shopt -s nullglob
    wheel=(../shared/gpu/torch213/transformer_engine_torch-*.whl)
    ./launch/install_gpu.sh ${wheel:+--te-wheel "${wheel[0]}"} "$venv"
fi
files=() options=()
for argument in "$@"; do
    case $argument in
        tests/*) files+=("$argument") ;;
        *) options+=("$argument") ;;
    esac
done
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1
((${#files[@]})) || files=(tests/contract)
exec "$venv/bin/python" -m pytest -m contract -n 2 --dist loadfile --durations=10 --durations-min=1 "${options[@]}" "${files[@]}"
