"""A checkpoint of adapters -> a PEFT folder, or, with the model that they belong to, a complete HF folder.

Called by megatron_to_hf.py. Adapters are small and held in memory; the model is streamed.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoint_tools.command import Progress, output_folder
from checkpoint_tools.megatron_folder import MegatronFolder
from checkpoint_tools.megatron_to_hf import Rows, find, hf_rows
from checkpoint_tools.safetensors_writer import SafetensorsWriter, cast
from megatron_nft.actor.adapter_record import adapters_of
from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.families.adapter_folder import CONFIG, WEIGHTS
from megatron_nft.families.hf_config import HFConfig, hf_side, is_megatron_folder, read_hf_config
from megatron_nft.families.lora import PREFIX, adapter_parameters, peft_config
from megatron_nft.families.parameters import parameters
from megatron_nft.families.weight_files import check_weights
from megatron_nft.weights.base_digest import digests, whole_digest
from megatron_nft.weights.export import finish_hf_folder
from megatron_nft.weights.hf_tensors import HFTensors

BLOCK_BYTES = 256 << 20
"""Of a tensor of the model, that is read at a time."""


def write_peft(
    stored: MegatronFolder, record: Mapping[str, Any], hf: HFConfig, out: Path, *, dtype: torch.dtype | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Writes the PEFT folder `out`; it appears when it is whole.

    Raises:
        CheckpointError, UsageError, OSError: as megatron_to_hf.convert.
    """
    tensors = {name: cast(tensor, dtype or tensor.dtype, name) for name, tensor in read_adapter(stored, record, hf)}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with output_folder(out, source=stored.folder, num_bytes=total, overwrite=overwrite) as folder:
        save_file(dict(sorted(tensors.items())), folder / WEIGHTS, {"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)
        about = peft_config(hf, adapters_of(record), base=str(Path(record["base"]).resolve()))
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n")


def write_merged(
    stored: MegatronFolder, record: Mapping[str, Any], base: Path, out: Path, *, dtype: torch.dtype | None,
    overwrite: bool, shard_bytes: int,
) -> None:  # fmt: skip
    """Writes `base` with the adapters added to it as the HF folder `out`.

    Raises:
        CheckpointError: `base` is not the model that the adapters belong to.
        CheckpointError, ModelFolderError, UsageError, OSError: as megatron_to_hf.convert.
    """
    hf = read_hf_config(base, "--base")
    if (found := whole_digest(base, [digests(base)])) != record["base_digest"]:
        raise CheckpointError(
            f"{stored.folder}: its adapters belong to {record['base']} as it was ({record['base_digest'][:15]}...); "
            f"--base {base} has other weights, or the same in another format ({found[:15]}...); give that one"
        )
    adapter, scale = dict(read_adapter(stored, record, hf)), adapters_of(record).scale
    specs = dict(_specs(base, hf, dtype))
    total = sum(prod(shape) * number.itemsize for number, shape in specs.values())
    with output_folder(out, source=base, num_bytes=total, overwrite=overwrite) as folder:
        progress = Progress("megatron_to_hf", total)
        with SafetensorsWriter(folder, specs, shard_bytes) as writer:
            for rows in _base_rows(base, hf):
                writer.write(rows.name, rows.first, _added(rows, adapter, scale))
                progress.add(rows.numbers.numel() * specs[rows.name][0].itemsize)
        finish_hf_folder(folder, hf_side(base), [writer.weight_map])


def read_adapter(stored: MegatronFolder, record: Mapping[str, Any], hf: HFConfig) -> Iterator[tuple[str, Tensor]]:
    """By PEFT's names."""
    for parameter in adapter_parameters(hf, adapters_of(record)):
        tensor = find(stored, parameter, hf)
        found = {name: torch.empty(shape, dtype=tensor.dtype) for name, shape in parameter.hf_shapes.items()}
        for rows in hf_rows(stored, parameter, tensor):
            found[rows.name][rows.first : rows.first + len(rows.numbers)] = rows.numbers
        yield from found.items()


def _added(rows: Rows, adapter: Mapping[str, Tensor], scale: float) -> Tensor:
    module = f"{PREFIX}{rows.name.removesuffix('.weight')}"
    if (a := adapter.get(f"{module}.lora_A.weight")) is None:
        return rows.numbers
    b = adapter[f"{module}.lora_B.weight"][rows.first : rows.first + len(rows.numbers)]
    return (rows.numbers.float() + scale * (b.float() @ a.float())).to(rows.numbers.dtype)


def _specs(base: Path, hf: HFConfig, dtype: torch.dtype | None) -> Iterator[tuple[str, tuple]]:
    if is_megatron_folder(base):
        stored = MegatronFolder(base)
        for parameter in parameters(hf):
            number = find(stored, parameter, hf).dtype
            yield from ((name, (dtype or number, shape)) for name, shape in parameter.hf_shapes.items())
        return
    check_weights(base, hf)
    tensors = HFTensors(base)
    for parameter in parameters(hf):
        for name in parameter.hf_shapes:
            number, shape = tensors.spec(name)
            yield name, (dtype or number, shape)


def _base_rows(base: Path, hf: HFConfig) -> Iterator[Rows]:
    if is_megatron_folder(base):
        stored = MegatronFolder(base)
        for parameter in parameters(hf):
            yield from hf_rows(stored, parameter, find(stored, parameter, hf))
        return
    tensors = HFTensors(base)
    for parameter in parameters(hf):
        for name, shape in parameter.hf_shapes.items():
            block = max(1, BLOCK_BYTES // (prod(shape[1:]) * tensors.spec(name)[0].itemsize))
            for first in range(0, shape[0], block):
                yield Rows(name, first, tensors.rows(name, first, min(first + block, shape[0])))
