#!/usr/bin/env bash
# A model from the hub into models/NAME, where the recipes look for it; or a folder that is there already, linked.
#   launch/download_model.sh Qwen/Qwen2.5-32B [REVISION]      on a machine with network; whole files only
#   launch/download_model.sh /offline/Qwen2.5-32B
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
what=${1:?is missing: a name on the hub, such as Qwen/Qwen2.5-32B, or a folder} revision=${2:-main}
target=models/$(basename "$what")
mkdir -p models
if [[ -d $what ]]; then
    [[ -f $what/config.json ]] || { echo "error: $what has no config.json, so it is not an HF model" >&2; exit 2; }
    [[ ! -e $target || -L $target ]] || { echo "error: $target is there already; move it away to link $what" >&2; exit 2; }
    ln -sfn "$(realpath "$what")" "$target"
else
    hf=.venv/bin/hf
    [[ -x $hf ]] || hf=$(command -v hf) || { echo "error: no hf command; run launch/install.sh first" >&2; exit 2; }
    "$hf" download "$what" --revision "$revision" --local-dir "$target" \
        --include "*.safetensors" "*.json" "*.jinja" "*.txt" "*.model"
fi
echo "model: $target, $(du -shL "$target" | cut -f1)"
