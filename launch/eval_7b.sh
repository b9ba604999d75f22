#!/usr/bin/env bash
# The paper's evaluation of a 7B model (Qwen2.5-Math-7B and what was trained from it), on one node of GPUs: T = 0.6,
# top_p = 0.7, avg@32 on AIME24, AIME25 and AMC23, avg@1 on the others, prompts of 512 and answers of 3584 tokens.
#   MODEL=runs/nft/hf DATA=data ./launch/eval_7b.sh [flag or section.key=value ...]
#   launch/download_model.sh nvidia/NFT-7B && MODEL=models/NFT-7B DATA=data ./launch/eval_7b.sh      the authors' model
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:?set it to the HF folder of the model} TEMPERATURE=0.6 MAX_PROMPT_TOKENS=512 MAX_ANSWER_TOKENS=3584 \
    ENGINES=${ENGINES:-8} TP=${TP:-1} exec ./launch/eval.sh "$@"
