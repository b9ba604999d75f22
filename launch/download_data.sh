#!/usr/bin/env bash
# Training data and the six benchmarks into data/, under the names that the recipes and eval.sh have, every problem once.
#   launch/download_data.sh                       the NFT authors' files, from the hub, on a machine with network
#   launch/download_data.sh --dapo                DAPO's own: training data and AIME 2024 only; asks for "Answer: ..."
#   launch/download_data.sh /offline/folder       files from there, under the names below or those on the hub
# It takes what it finds; what is missing is listed at the end, with exit status 1.
# DATA is another folder than data; PYTHON another Python than .venv/bin/python.
# The names on the hub are those of the download scripts of NVlabs/NFT and of verl's DAPO recipe. Not tried: no network here.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Its name here | dataset on the hub | file in it
nft=ChenDRAG/VeRL_math_validation
files=("dapo-math-17k.parquet $nft dapo-math-17k_10boxed.parquet"
    "aime24.parquet $nft aime-2024-boxed_w_answer.parquet"
    "aime25.parquet $nft aime2025_32_dapo_boxed_w_answer.parquet"
    "amc23.parquet $nft amc2023_32_dapo_boxed_w_answer.parquet"
    "math500.parquet $nft math500_boxed.parquet"
    "minerva.parquet $nft minerva_math.parquet"
    "olympiad.parquet $nft olympiadbench.parquet")
if [[ ${1:-} == --dapo ]]; then
    shift
    files=("dapo-math-17k.parquet BytedTsinghua-SIA/DAPO-Math-17k data/dapo-math-17k.parquet"
        "aime24.parquet BytedTsinghua-SIA/AIME-2024 data/aime-2024.parquet")
fi
if [[ ${1:-} == -* ]]; then echo "error: no such option: $1; it is --dapo, or a folder" >&2; exit 2; fi
folder=${1:-} data=${DATA:-data} python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || { echo "error: no $python; run launch/install.sh first, or set PYTHON" >&2; exit 2; }
mkdir -p "$data"
missing=()
for entry in "${files[@]}"; do
    read -r name repository file <<<"$entry"
    if [[ -n $folder ]]; then
        source=$folder/$name
        [[ -r $source ]] || source=$folder/$(basename "$file")
        if [[ ! -r $source ]]; then
            missing+=("neither $name nor $(basename "$file") in $folder; it is $file of https://huggingface.co/datasets/$repository")
            continue
        fi
    else
        hf=$(dirname "$(command -v "$python")")/hf
        [[ -x $hf ]] || hf=$(command -v hf) || { echo "error: no hf command; run launch/install.sh first" >&2; exit 2; }
        "$hf" download "$repository" "$file" --repo-type dataset --local-dir "$data/.hub" || {
            missing+=("$name: no $file of https://huggingface.co/datasets/$repository")
            continue
        }
        source=$data/.hub/$file
    fi
    "$python" launch/unique_rows.py "$source" "$data/$name" || missing+=("$name: $source was not taken, see above")
done
if ((${#missing[@]})); then
    printf 'missing: %s\n' "${missing[@]}" >&2
    where="without network, download them elsewhere, and give their folder: launch/download_data.sh FOLDER"
    [[ -z $folder ]] || where="download them, or do without: whatever was found is in $data"
    echo "error: ${#missing[@]} of ${#files[@]} files are missing; $where" >&2
    exit 1
fi
