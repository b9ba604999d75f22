#!/usr/bin/env bash
# One machine, all of its GPUs (or cores): doctor, then training, again after every exit with status 75. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'END'
usage: launch/train.sh [--anyway] RECIPE [section.key=value ...]

Trains on this machine: Ray, Megatron ranks and vLLM engines start here, on as many GPUs as the recipe asks for, and end with it.

  launch/train.sh launch/recipes/quickstart.toml                 two CPU cores, a few minutes
  launch/train.sh my.toml actor.tp=2 actor.dp=2 rollout.engines=4       8 GPUs: 4 train, 4 generate
  launch/train.sh my.toml actor.tp=4 actor.dp=2 rollout.engines=8 cluster.placement=colocated      8 GPUs take turns
  CUDA_VISIBLE_DEVICES=0,1,2,3 launch/train.sh my.toml ...        some of the GPUs
  NFT_DRIVER=megatron_nft.train_async launch/train.sh my.toml ...       engines go on while the actor trains (not colocated)

  ranks = actor.tp x actor.pp x actor.cp x actor.dp; GPUs = ranks + rollout.engines x rollout.tp, or, colocated, the ranks.
  Does it fit? python -m megatron_nft.plan my.toml --suggest        Every setting: python -m megatron_nft.config

First `python -m megatron_nft.doctor RECIPE` looks at the machine; a FAIL ends this, unless --anyway is given.
A run that loses processes too often is started again, if it has saved more since; one that fails otherwise ends.
A run that exists goes on from its last checkpoint; run.overwrite=all deletes it and begins anew.

  Ctrl-C              ends without saving
  kill -TERM PID      saves the last whole step, and ends                       (PID: of this script, it is printed)
  kill -USR1 PID      saves, and goes on in new processes, such as after a change of the program

Exit status: 0 done, 1 failed, 2 wrong recipe or data, 130 interrupted. PYTHON=... is another Python than .venv/bin/python.
Several machines: slurm/README.md.
END
}

anyway=
while [[ ${1:-} == -* ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --anyway) anyway=1 ;;
        *) echo "error: no such option: $1; see launch/train.sh --help" >&2; exit 2 ;;
    esac
    shift
done
if [[ -z ${1:-} ]]; then usage >&2; exit 2; fi
recipe=$1
shift
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || {
    echo "error: no $python; run launch/install.sh (CPU), or see requirements-gpu.txt, or set PYTHON" >&2; exit 2; }
[[ -r $recipe ]] || { echo "error: no recipe $recipe in $PWD; launch/recipes has some" >&2; exit 2; }

"$python" -m megatron_nft.doctor "$recipe" "$@" || {
    if [[ -z $anyway ]]; then
        echo "error: this machine is not fit: mend what FAILs above, or give --anyway before the recipe" >&2
        exit 1
    fi
}

training=
trap 'kill -s INT "$training" 2>/dev/null || true' INT
trap 'kill -s TERM "$training" 2>/dev/null || true' TERM HUP
trap 'kill -s USR1 "$training" 2>/dev/null || true' USR1
settings=(run.overwrite=false "$@")
for ((attempt = 0; ; attempt++)); do
    echo "train.sh: process $$, attempt $attempt"
    set -m # of its own group: signals come through the traps, and Ctrl-C is not ignored
    "$python" -u -m "${NFT_DRIVER:-megatron_nft.train}" "$recipe" "${settings[@]}" &
    training=$!
    set +m
    while :; do
        status=0
        wait "$training" || status=$?
        kill -0 "$training" 2>/dev/null || break # else a trap has ended the wait
    done
    ((status == 75)) || exit "$status"
    settings=("$@" run.overwrite=false)
done
