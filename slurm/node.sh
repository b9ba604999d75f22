#!/usr/bin/env bash
# The environment of every program of a job, on its node: node.sh COMMAND... . Started by srun, see common.sh.
set -euo pipefail
cd "${NFT_HOME:?is set by slurm/common.sh}"
if [[ -n ${NFT_MODULES:-} ]]; then
    for file in /etc/profile.d/{lmod,modules}.sh; do # a batch job's shell is no login shell, which reads them
        # shellcheck disable=SC1090
        if [[ -r $file ]] && ! command -v module >/dev/null; then set +eu && source "$file" && set -eu; fi
    done
    command -v module >/dev/null || { echo "NFT_MODULES=$NFT_MODULES: $(hostname) has no \`module\`; leave it empty" >&2; exit 2; }
    # shellcheck disable=SC2086
    module load $NFT_MODULES
fi
if [[ -z ${NFT_CONTAINER:-} ]]; then export PATH=${NFT_VENV:?is set by slurm/common.sh}/bin:$PATH; fi
if [[ -n ${NFT_UMASK:-} ]]; then umask "$NFT_UMASK"; fi
if [[ -n ${NFT_CACHE_DIR:-} ]]; then # what compilers keep; many processes at once are too much for a home folder
    # It holds code that is run, and others may write to /tmp, too.
    # shellcheck disable=SC2174
    if ! mkdir -p -m 700 "$NFT_CACHE_DIR" || [[ ! -O $NFT_CACHE_DIR ]]; then
        echo "NFT_CACHE_DIR=$NFT_CACHE_DIR is no folder of this user's on $(hostname); set another one in slurm/site.env" >&2
        exit 2
    fi
    export TRITON_CACHE_DIR=$NFT_CACHE_DIR/triton TORCHINDUCTOR_CACHE_DIR=$NFT_CACHE_DIR/inductor
    export VLLM_CACHE_ROOT=$NFT_CACHE_DIR/vllm CUDA_CACHE_PATH=$NFT_CACHE_DIR/cuda
fi
export PYTHONPATH=$NFT_HOME${PYTHONPATH:+:$PYTHONPATH}
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export RAY_prestart_worker_first_driver=0 # else Ray starts idle workers on the driver's node, which no rank or engine can use
if [[ -n ${NFT_INTERFACE:-} ]]; then export NCCL_SOCKET_IFNAME=$NFT_INTERFACE GLOO_SOCKET_IFNAME=$NFT_INTERFACE; fi
if [[ -n ${NFT_PID_FILE:-} ]]; then echo $$ >"$NFT_PID_FILE"; fi
exec "$@"
