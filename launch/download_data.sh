#!/usr/bin/env bash
# The data of the published recipes into data/, under the names that the recipes have; or a folder of such files, linked.
#   launch/download_data.sh                          from the hub, on a machine with network
#   launch/download_data.sh /offline/folder          with dapo-math-17k.parquet and aime24.parquet in it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# What the recipes call it | dataset on the hub | file in it
files=("dapo-math-17k.parquet BytedTsinghua-SIA/DAPO-Math-17k data/dapo-math-17k.parquet"
    "aime24.parquet BytedTsinghua-SIA/AIME-2024 data/aime-2024.parquet")
mkdir -p data
for entry in "${files[@]}"; do
    read -r name repository file <<<"$entry"
    if [[ -n ${1:-} ]]; then
        [[ -r $1/$name ]] || { echo "error: no $1/$name; it is $file of https://huggingface.co/datasets/$repository" >&2; exit 2; }
        ln -sfn "$(realpath "$1/$name")" "data/$name"
    else
        hf=.venv/bin/hf
        [[ -x $hf ]] || hf=$(command -v hf) || { echo "error: no hf command; run launch/install.sh first" >&2; exit 2; }
        "$hf" download "$repository" "$file" --repo-type dataset --local-dir "data/.$name"
        ln -sfn ".$name/$file" "data/$name"
    fi
    echo "data: data/$name, $(du -shL "data/$name" | cut -f1)"
done
