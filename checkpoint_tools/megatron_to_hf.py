"""A Megatron checkpoint -> a complete HF folder, whatever layout it was saved in.

    megatron-nft convert megatron-to-hf --megatron runs/nft/checkpoints/latest --out trained
    megatron-nft convert megatron-to-hf --megatron theirs --hf Qwen2.5-7B --out theirs_hf --dtype bfloat16
    megatron-nft convert megatron-to-hf --megatron runs/lora/checkpoints/latest --out adapter
    megatron-nft convert megatron-to-hf --megatron runs/lora/checkpoints/latest --base Qwen2.5-7B --out trained

config.json, tokenizer and so on come from MEGATRON/hf, where training and hf-to-megatron put them; for
a checkpoint of another program, which has weights only, --hf names a folder that has them. A checkpoint
of adapters becomes a PEFT folder, or, with --base, the model that they belong to with them added.
Streamed: a few tensors are in memory at a time.

Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted (nothing is left behind).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_tools.command import CASTS, Progress, UsageError, add_output_arguments, output_folder, run
from checkpoint_tools.megatron_folder import MegatronFolder, StoredChunk, StoredTensor
from checkpoint_tools.safetensors_writer import SHARD_BYTES, SafetensorsWriter
from megatron_nft.actor.adapter_record import ADAPTER
from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.config import path_argument
from megatron_nft.families.adapter_folder import CONFIG as ADAPTER_CONFIG
from megatron_nft.families.hf_config import SIDE_FILES, HFConfig, read_hf_config
from megatron_nft.families.parameters import Parameter, parameters
from megatron_nft.weights.export import finish_hf_folder
from megatron_nft.weights.layouts import parts


@dataclass(frozen=True)
class Rows:
    """Some rows of an HF tensor."""

    name: str
    first: int
    numbers: Tensor


def convert(
    source: Path,
    out: Path,
    *,
    side_files: Path | None = None,
    base: Path | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the HF folder `out`; it appears when it is whole.

    Args:
        base: of adapters: the model to which they are added. None: they become a PEFT folder.
        side_files: folder with config.json and all else that isn't weights. None: the checkpoint's own.
        dtype: number format of the weights. None: as they are.
        shard_bytes: largest weight file.

    Raises:
        CheckpointError: the checkpoint is not whole, or not what config.json says.
        UsageError: `out` is there and may not be replaced, or config.json is nowhere.
        OSError: such as a full disk.
    """
    stored, with_config = MegatronFolder(source), side_files_of(source, side_files)
    hf = read_hf_config(with_config, "--hf")
    if (record := stored.read_common().get(ADAPTER)) is not None:
        from checkpoint_tools import adapter_to_hf  # which takes the functions below

        if base is None and side_files is not None and (source / SIDE_FILES / "config.json").is_file():
            raise UsageError(
                f"{source} has adapters only, and --hf gives no weights; --base {side_files} adds them to that model, "
                "neither makes a PEFT folder of them"
            )
        if base is not None:
            more = {"dtype": dtype, "overwrite": overwrite, "shard_bytes": shard_bytes}
            return adapter_to_hf.write_merged(stored, record, base, out, **more)
        return adapter_to_hf.write_peft(stored, record, hf, out, dtype=dtype, overwrite=overwrite)
    if base is not None:
        raise UsageError(f"{source} has a whole model, no adapters; leave --base out")
    model = [(parameter, find(stored, parameter, hf)) for parameter in parameters(hf)]
    specs = {
        name: (dtype or tensor.dtype, shape)
        for parameter, tensor in model
        for name, shape in parameter.hf_shapes.items()
    }
    total = sum(prod(shape) * number.itemsize for number, shape in specs.values())
    with output_folder(out, source=source, num_bytes=total, overwrite=overwrite) as folder:
        progress = Progress("megatron_to_hf", total)
        with SafetensorsWriter(folder, specs, shard_bytes) as writer:
            for parameter, tensor in model:
                for rows in hf_rows(stored, parameter, tensor):
                    writer.write(rows.name, rows.first, rows.numbers)
                    progress.add(rows.numbers.numel() * specs[rows.name][0].itemsize)
        finish_hf_folder(folder, with_config, [writer.weight_map])


def side_files_of(source: Path, given: Path | None) -> Path:
    """The folder with config.json.

    Raises:
        UsageError: there is none.
    """
    if given is None and not (source / SIDE_FILES / "config.json").is_file():
        raise UsageError(
            f"{source} has no {SIDE_FILES}/config.json, as checkpoints of other programs; "
            "give --hf, a folder with its model's config and tokenizer"
        )
    return given or source / SIDE_FILES


def find(stored: MegatronFolder, parameter: Parameter, hf: HFConfig) -> StoredTensor:
    """A parameter in the checkpoint.

    Raises:
        CheckpointError: it is not there, not whole, or of another shape than config.json says.
    """
    tensor = stored.tensors.get(parameter.key)
    if tensor is None:
        why = "is config.json that of another model?"
        if (record := stored.read_common().get(ADAPTER)) is not None:
            why = (
                f"it has adapters of {record['base']} only; a whole model of them makes megatron-nft convert "
                f"megatron-to-hf --megatron {stored.folder} --base {record['base']} --out DIR"
            )
        raise CheckpointError(f"{stored.folder}: no {parameter.key}; {why}")
    expected, shape = parameter.global_shape, tensor.shape
    if parameter.is_table and shape[0] >= hf.vocab_size:  # however many rows of padding its layout asked for
        expected = (shape[0], *expected[1:])
    if shape != expected:
        raise CheckpointError(
            f"{stored.folder}: {parameter.key} is {shape}, by config.json it is {expected}; is that of another model?"
        )
    numel = sum(prod(chunk.shape) for chunk in _chunks(tensor, parameter))
    if numel != prod(shape[len(parameter.stack) :]):
        where = "".join(f" of {axis} {index}" for axis, index in parameter.numbers.items()).replace("slot", "expert")
        raise CheckpointError(f"{stored.folder}: {parameter.key}{where} has holes; was the save interrupted?")
    return tensor


def _chunks(tensor: StoredTensor, parameter: Parameter) -> tuple[StoredChunk, ...]:
    return tensor.at(*(index for index, _ in parameter.stack))


def hf_rows(stored: MegatronFolder, parameter: Parameter, tensor: StoredTensor) -> Iterator[Rows]:
    """The HF tensors of a parameter, each place once."""
    chunks = _chunks(tensor, parameter)
    if parameter.is_plain:
        ((name, hf_shape),) = parameter.hf_shapes.items()
        for chunk in chunks:
            first, *_ = box = chunk.offset[len(parameter.stack) :]
            if any(box[1:]) or chunk.shape[len(chunk.shape) - len(hf_shape) + 1 :] != hf_shape[1:]:
                raise CheckpointError(f"{stored.folder}: {tensor.key} is cut along its columns: not supported")
            numbers = stored.read(tensor, chunk).reshape(-1, *hf_shape[1:])
            if first < hf_shape[0]:  # else all of it is padding
                yield Rows(name, first, numbers[: hf_shape[0] - first])
        return
    whole = _assemble(stored, parameter, tensor, chunks)
    for part in parts(parameter.rule, parameter.numbers, whole, ()):
        first = part.where[0].start or 0
        yield Rows(part.name, first, part.piece.reshape(-1, *parameter.hf_shapes[part.name][1:]))


def _assemble(
    stored: MegatronFolder, parameter: Parameter, tensor: StoredTensor, chunks: Sequence[StoredChunk]
) -> Tensor:
    """A parameter, as one rank without tensor parallelism has it."""
    axes = len(parameter.stack)
    if len(chunks) == 1:
        return stored.read(tensor, chunks[0]).reshape(parameter.shape)
    whole = torch.empty(parameter.shape, dtype=tensor.dtype)
    for chunk in chunks:
        box = tuple(slice(o, o + n) for o, n in zip(chunk.offset[axes:], chunk.shape[axes:], strict=True))
        whole[box] = stored.read(tensor, chunk).reshape(chunk.shape[axes:])
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft convert megatron-to-hf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--megatron",
        type=path_argument,
        metavar="DIR",
        required=True,
        help="checkpoint in Megatron's torch_dist format",
    )
    parser.add_argument(
        "--hf", type=path_argument, metavar="DIR", help="HF folder to take config.json, tokenizer and so on from"
    )
    parser.add_argument(
        "--base", type=path_argument, metavar="DIR", help="of adapters: the model that they are to be added to"
    )
    add_output_arguments(parser)

    def body(arguments: argparse.Namespace) -> None:
        for option, folder in (("--megatron", arguments.megatron), ("--base", arguments.base)):
            if folder is not None and not folder.is_dir():
                raise UsageError(f"{option} {folder}: no such folder")
        convert(
            arguments.megatron,
            arguments.out,
            side_files=arguments.hf,
            base=arguments.base,
            dtype=CASTS.get(arguments.dtype),
            overwrite=arguments.overwrite,
        )
        kind = "a PEFT" if (arguments.out / ADAPTER_CONFIG).is_file() else "an HF"
        print(f"{arguments.out}: {kind} folder of {arguments.megatron}")

    return run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
