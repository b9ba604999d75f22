#!/usr/bin/env bash
# A model from the hub into models/NAME, where the recipes look for it; or a folder that is there already, linked.
#   launch/download_model.sh Qwen/Qwen2.5-32B [REVISION]      on a machine with network; goes on where it was cut off
#   launch/download_model.sh /offline/Qwen2.5-32B
# It says "model: ..." only when every file that the model's index names is there, whole.
# MODELS is another folder than models; PYTHON another Python than .venv/bin/python.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
what=${1:?is missing: a name on the hub, such as Qwen/Qwen2.5-32B, or a folder} revision=${2:-main}
models=${MODELS:-models} python=${PYTHON:-.venv/bin/python}
target=$models/$(basename "$what")
command -v "$python" >/dev/null || { echo "error: no $python; run launch/install.sh first, or set PYTHON" >&2; exit 2; }
is_whole() { PYTHONPATH=$PWD "$python" launch/whole_model.py "$1"; }
mkdir -p "$models"
if [[ -d $what ]]; then
    is_whole "$what" || exit 2
    [[ ! -e $target || -L $target ]] || { echo "error: $target is there already; move it away to link $what" >&2; exit 2; }
    ln -sfn "$(realpath "$what")" "$target"
else
    hf=$(dirname "$(command -v "$python")")/hf
    [[ -x $hf ]] || hf=$(command -v hf) || { echo "error: no hf command; run launch/install.sh first" >&2; exit 2; }
    include=() # one pattern a time: of several after one --include, huggingface_hub takes all but the first for file names
    for pattern in '*.safetensors' '*.json' '*.jinja' '*.txt' '*.model'; do include+=(--include "$pattern"); done
    "$hf" download "$what" --revision "$revision" --local-dir "$target" "${include[@]}" || {
        echo "error: $what was not downloaded; without network, download it elsewhere, and give its folder:" \
            "launch/download_model.sh FOLDER" >&2; exit 1; }
    # Without network hf is content with whatever is there already.
    is_whole "$target" || {
        echo "error: $target is not whole: give the same command again, on a machine with network" >&2; exit 1; }
fi
echo "model: $target, $(du -shL "$target" | cut -f1)"
