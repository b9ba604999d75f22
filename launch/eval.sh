#!/usr/bin/env bash
# What eval_7b.sh and eval_32b.sh share: finds the six benchmarks' files in DATA, sampled 32 times or once each, and
# evaluates MODEL on them. Files are parquet or jsonl, named as their benchmark: aime24.parquet, or, as the NFT authors'
# are, aime-2024-boxed_w_answer.parquet. A missing one is named, and ends the script.
# GRADING=whole_text (as theirs: MATH500, Olympiad and Minerva are right wherever in the text the answer stands) or boxed.
set -euo pipefail

: "${MODEL:?set it to the HF folder of the model}" "${DATA:?set it to the folder of the six benchmark files}"
: "${TEMPERATURE:?}" "${MAX_PROMPT_TOKENS:?}" "${MAX_ANSWER_TOKENS:?}" "${ENGINES:?}" "${TP:?}"
PYTHON=${PYTHON:-.venv/bin/python} GRADING=${GRADING:-whole_text} SYSTEM_PROMPT=${SYSTEM_PROMPT:-}
if [[ $GRADING != whole_text && $GRADING != boxed ]]; then
    echo "error: GRADING=$GRADING: choose whole_text (as the authors grade) or boxed (the last box)" >&2
    exit 2
fi
modes=()
for source in math500 math500_w_answer olympiadbench minerva_math; do modes+=("$source = \"$GRADING\""); done

files=() once=()
add() { # column, answers per prompt, patterns of its file's name
    local column=$1 samples=$2 pattern found=()
    shift 2
    for pattern in "$@"; do
        mapfile -t -O "${#found[@]}" found < <(find "$DATA" -maxdepth 1 -type f -iname "$pattern" \
            \( -name '*.parquet' -o -name '*.jsonl' \) | sort)
    done
    if ((${#found[@]} != 1)); then
        echo "error: ${#found[@]} files for $column in $DATA (looked for $*): ${found[*]:-none}" >&2
        exit 2
    fi
    files+=("${found[0]}")
    if ((samples == 1)); then
        local name
        name=$(basename "${found[0]}")
        once+=("${name%.*}=1")
    fi
}

add AIME24 32 'aime24*' 'aime-2024*' 'aime2024*' 'aime_2024*'
add MATH500 1 'math500*' 'math-500*' 'math_500*'
add AIME25 32 'aime25*' 'aime-2025*' 'aime2025*' 'aime_2025*'
add AMC23 32 'amc*'
add Olympiad 1 'olympiad*'
add Minerva 1 'minerva*'

exec "$PYTHON" -m megatron_nft.evaluate --model "$MODEL" --data "${files[@]}" --n 32 --n-of "${once[@]}" \
    --temperature "$TEMPERATURE" --top-p 0.7 --max-prompt-tokens "$MAX_PROMPT_TOKENS" --max-answer-tokens "$MAX_ANSWER_TOKENS" \
    --engines "$ENGINES" --tp "$TP" rollout.gpu_memory_fraction=0.8 \
    "verdict.modes={$(IFS=,; echo "${modes[*]}")}" "data.system_prompt=$SYSTEM_PROMPT" "$@"
