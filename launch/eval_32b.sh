#!/usr/bin/env bash
# The paper's evaluation of a 32B model (Qwen2.5-32B and what was trained from it), on one node of 8 GPUs: as
# eval_7b.sh, with engines over 4 GPUs each, and Qwen2.5-Math-7B's system prompt (see the recipe; SYSTEM_PROMPT= for none).
# Two settings are published, and which one made the table is not:
#   PUBLISHED=training   that of their validation in training: T = 0.6, prompts of 2048, answers of 14,336 tokens (default)
#   PUBLISHED=script     that of their evaluation script for NFT-32B: T = 1.0, 1024 and 7168
#   MODEL=runs/nft/hf DATA=data ./launch/eval_32b.sh [flag or section.key=value ...]
#   launch/download_model.sh nvidia/NFT-32B && MODEL=models/NFT-32B DATA=data ./launch/eval_32b.sh      the authors' model
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${PUBLISHED:-training} in
    training) TEMPERATURE=0.6 MAX_PROMPT_TOKENS=2048 MAX_ANSWER_TOKENS=14336 ;;
    script) TEMPERATURE=1.0 MAX_PROMPT_TOKENS=1024 MAX_ANSWER_TOKENS=7168 ;;
    *) echo "error: PUBLISHED=$PUBLISHED: choose training (T 0.6, 2048 + 14336) or script (T 1.0, 1024 + 7168)" >&2; exit 2 ;;
esac
prompt='Please reason step by step, and put your final answer within \boxed{}.'
export TEMPERATURE MAX_PROMPT_TOKENS MAX_ANSWER_TOKENS SYSTEM_PROMPT=${SYSTEM_PROMPT-$prompt}
MODEL=${MODEL:?set it to the HF folder of the model} ENGINES=${ENGINES:-2} TP=${TP:-4} exec ./launch/eval.sh "$@"
