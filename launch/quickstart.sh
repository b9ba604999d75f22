#!/usr/bin/env bash
# From nothing to a better model on two CPU cores: makes .venv, installs, and trains a small model with NFT.
#   ./launch/quickstart.sh [section.key=value ...]      e.g. run.name=other actor.tp=1 actor.pp=2 run.seed=2
# Stopped, it goes on when it is called again; done, it says so, and what to type. What there is to set:
# `python -m megatron_nft.config`, when .venv is there.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

./launch/install.sh
start=$SECONDS status=0
.venv/bin/python -m megatron_nft.train launch/recipes/quickstart.toml "$@" || status=$?
if ((status == 0)); then
    echo "quickstart: done in $((SECONDS - start)) s (without the installation)"
else
    echo "quickstart: FAILED with exit status $status after $((SECONDS - start)) s" >&2
fi
exit "$status"
