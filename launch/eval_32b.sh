#!/usr/bin/env bash
# The paper's evaluation of a 32B model (Qwen2.5-32B and what was trained from it), on one node of 8 GPUs: as
# eval_7b.sh, with prompts of 2048 and answers of 14,336 tokens, and engines over 4 GPUs each.
#   MODEL=runs/nft/hf DATA=data ./launch/eval_32b.sh [flag or section.key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:?set it to the HF folder of the model} MAX_PROMPT_TOKENS=2048 MAX_ANSWER_TOKENS=14336 \
    ENGINES=${ENGINES:-2} TP=${TP:-4} exec ./launch/eval.sh "$@"
