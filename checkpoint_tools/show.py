"""What is in a Megatron checkpoint: layout, step, policy version, sizes, number formats. Reads no tensor.

    megatron-nft inspect runs/nft/checkpoints/latest
    megatron-nft inspect theirs --tensors

The layout of another program's checkpoint is written down nowhere: it is read off the chunks (how a
matrix is cut: tp; whose files hold which layers: pp and its virtual stages).

Exit status: 0 done, 1 no checkpoint or not a whole one, 2 wrong arguments, 130 interrupted.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from checkpoint_tools.command import UsageError, dtype_name, run
from checkpoint_tools.megatron_folder import MegatronFolder, StoredChunk, StoredTensor
from megatron_nft.actor.adapter_record import ADAPTER
from megatron_nft.config import path_argument
from megatron_nft.families.hf_config import SIDE_FILES, read_hf_config
from megatron_nft.families.lora import B

QKV = "decoder.layers.self_attention.linear_qkv.weight"
"""In every layer, and cut along its last axis but one by tensor parallelism."""
QKV_OF_LAYER = re.compile(r"decoder\.layers\.(\d+)\.self_attention\.linear_qkv\.weight")
"""The same, where only some layers have experts."""
OF_ADAPTERS = tuple(f"decoder.layers.{module}.{B}" for module in (
    "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"))  # fmt: skip
"""In every layer of a checkpoint of adapters, one of them; it says itself how many ranks cut it."""


def describe(folder: Path) -> dict[str, Any]:
    """All that can be said, in plain values; None for what is not recorded.

    Raises:
        CheckpointError: no checkpoint, or not a whole one.
    """
    stored = MegatronFolder(folder)
    common = stored.read_common()
    optimizer = [tensor for key, tensor in stored.tensors.items() if key not in stored.weights]
    has_side_files = (folder / SIDE_FILES / "config.json").is_file()
    schedule = common.get("schedule")
    return {
        "folder": str(folder),
        "format": "torch_dist",
        "model": _model(folder / SIDE_FILES) if has_side_files else None,
        "layout": _layout(stored, common),
        "step": common.get("step"),
        "updates": schedule.get("num_steps") if isinstance(schedule, dict) else None,
        "policy_version": common.get("policy_version"),
        "adapter": common.get(ADAPTER),
        "weights": _size(list(stored.weights.values())),
        "optimizer": _size(optimizer) if optimizer else None,
        "files": {
            "number": len(stored.files),
            "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
        },
        "tensors": [
            {
                "key": tensor.key,
                "shape": list(tensor.shape),
                "dtype": dtype_name(tensor.dtype),
                "bytes": tensor.num_bytes,
                "chunks": len(tensor.chunks),
            }
            for tensor in stored.tensors.values()
        ],
    }


def _model(folder: Path) -> dict[str, Any]:
    hf = read_hf_config(folder)
    return {
        "type": hf.model_type,
        "layers": hf.num_hidden_layers,
        "hidden_size": hf.hidden_size,
        "vocab_size": hf.vocab_size,
        "tied": hf.tie_word_embeddings,
    }


def _size(tensors: Sequence[StoredTensor]) -> dict[str, Any]:
    return {
        "numbers": sum(prod(tensor.shape) for tensor in tensors),
        "bytes": sum(tensor.num_bytes for tensor in tensors),
        "dtypes": sorted({dtype_name(tensor.dtype) for tensor in tensors}),
    }


def _layout(stored: MegatronFolder, common: dict[str, Any]) -> dict[str, int] | None:
    """Of the ranks that saved it; 1 everywhere for a converted one; None if it is of another kind of model."""
    # Of replicas, which share the writing, files tell too little; this program's checkpoints say the rest themselves.
    recorded = common.get("layout", {})
    chunks = _attention_chunks(stored)
    if not chunks:
        return recorded or None
    if "schedule" not in common:
        return {"tp": 1, "pp": 1, "vpp": 1}
    writers: dict[int, set[str]] = {}
    for layer, chunk, _ in chunks:
        rank = re.match(r"__(\d+)_", chunk.file)
        writers.setdefault(layer, set()).add(rank.group(1) if rank else chunk.file)
    stages: dict[frozenset[str], list[int]] = {}
    for layer in sorted(writers):
        stages.setdefault(frozenset(writers[layer]), []).append(layer)
    runs = [1 + sum(b - a > 1 for a, b in pairwise(layers)) for layers in stages.values()]
    _, chunk, tensor = chunks[0]
    seen = {"tp": tensor.shape[-2] // chunk.shape[-2], "pp": len(stages), "vpp": max(runs)}
    return seen | recorded


def _attention_chunks(stored: MegatronFolder) -> list[tuple[int, StoredChunk, StoredTensor]]:
    """Of a tensor that every layer has: layer, chunk, and the tensor that the chunk is of."""
    if (stacked := next((key for key in (QKV, *OF_ADAPTERS) if key in stored.tensors), None)) is not None:
        tensor = stored.tensors[stacked]
        return [(chunk.offset[0], chunk, tensor) for chunk in tensor.chunks]
    found = [(QKV_OF_LAYER.fullmatch(key), tensor) for key, tensor in stored.tensors.items()]
    return [(int(match[1]), chunk, tensor) for match, tensor in found if match for chunk in tensor.chunks]


def as_text(found: dict[str, Any], *, with_tensors: bool) -> str:
    """For people."""
    model, layout = found["model"], found["layout"]
    rows = {
        "model": f"{model['type']}, {model['layers']} layers, hidden {model['hidden_size']}, "
        f"vocabulary {model['vocab_size']}{', tied' if model['tied'] else ''}"
        if model
        else "not recorded (no hf/config.json)",
        "layout": _layout_text(layout),
        "step": _or_not_recorded(found["step"]),
        "updates": _or_not_recorded(found["updates"]),
        "policy version": _or_not_recorded(found["policy_version"]),
        "weights": _size_text(found["weights"]),
        **({"adapter": _adapter_text(found["adapter"])} if found["adapter"] else {}),
        "optimizer": _size_text(found["optimizer"]) if found["optimizer"] else "none",
        "files": f"{found['files']['number']} with tensors, {found['files']['bytes'] / 1e6:,.1f} MB in all",
    }
    lines = [f"{found['folder']}: Megatron checkpoint, {found['format']}"]
    lines += [f"  {name:<16}{value}" for name, value in rows.items()]
    if with_tensors:
        lines.append("")
        for tensor in found["tensors"]:
            shape = " x ".join(map(str, tensor["shape"]))
            chunks = f"{tensor['chunks']} chunk{'s' if tensor['chunks'] > 1 else ''}"
            lines.append(
                f"  {tensor['key']:<72} {shape:>20} {tensor['dtype']:>9} {tensor['bytes'] / 1e6:>10,.2f} MB  {chunks}"
            )
    return "\n".join(lines)


def _or_not_recorded(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def _layout_text(layout: dict[str, int] | None) -> str:
    if layout is None:
        return "not known: no attention layers by Megatron-Core's names"
    virtual = f" x {layout['vpp']} virtual stages" if layout["vpp"] > 1 else ""
    rest = "".join(f" x {axis} {layout[axis]}" for axis in ("cp", "dp", "ep", "etp") if axis in layout)
    return f"tp {layout['tp']} x pp {layout['pp']}{virtual}{rest}; any layout can load it"


def _adapter_text(record: dict[str, Any]) -> str:
    kind = ", rslora" if record["rslora"] else ""
    return (
        f"rank {record['rank']}, alpha {record['alpha']:g}{kind}, of {', '.join(record['targets'])}; belongs to "
        f"{record['base']} ({record['base_digest'][:15]}...)"
    )


def _size_text(size: dict[str, Any]) -> str:
    return f"{size['numbers']:,} numbers, {size['bytes'] / 1e6:,.1f} MB, {' and '.join(size['dtypes'])}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=path_argument, help="checkpoint in Megatron's torch_dist format")
    parser.add_argument("--json", action="store_true", help="one JSON object, all tensors in it")
    parser.add_argument("--tensors", action="store_true", help="list the tensors, too")

    def body(arguments: argparse.Namespace) -> None:
        if not arguments.folder.is_dir():
            raise UsageError(f"{arguments.folder}: no such folder")
        found = describe(arguments.folder)
        print(json.dumps(found, indent=1) if arguments.json else as_text(found, with_tensors=arguments.tensors))

    return run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
