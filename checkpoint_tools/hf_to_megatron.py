"""An HF folder -> a Megatron checkpoint that training loads in any layout.

    megatron-nft convert hf-to-megatron --hf Qwen2.5-0.5B --out Qwen2.5-0.5B-megatron
    megatron-nft train my.toml model.path=Qwen2.5-0.5B-megatron actor.tp=2

Weights only, streamed: a few tensors are in memory at a time. What isn't weights (config, tokenizer,
...) goes along in OUT/hf, so that the way back needs nothing else.

Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted (nothing is left behind).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_tools.command import CASTS, Progress, UsageError, add_output_arguments, output_folder, run
from checkpoint_tools.megatron_writer import Chunk, write_checkpoint
from checkpoint_tools.safetensors_writer import cast
from megatron_nft.config import path_argument
from megatron_nft.families.hf_config import SIDE_FILES, HFConfig, is_megatron_folder, kind_of, read_hf_config
from megatron_nft.families.parameters import Parameter, parameters
from megatron_nft.families.weight_files import check_weights
from megatron_nft.weights.export import copy_side_files
from megatron_nft.weights.hf_tensors import HFTensors
from megatron_nft.weights.layouts import to_shard

BLOCK_BYTES = 256 << 20
"""The vocabulary's rows are read and written in blocks of this size."""


def convert(source: Path, out: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False) -> None:
    """Writes the checkpoint `out`; it appears when it is whole.

    Args:
        dtype: number format of the weights. None: as they are.

    Raises:
        ModelFolderError: the HF folder is not whole, not of a family that is known, or not what its config.json says.
        UsageError: `out` is there and may not be replaced.
        OSError: such as a full disk.
    """
    if is_megatron_folder(source):
        raise UsageError(f"--hf {source}{kind_of(source)}")
    hf = read_hf_config(source, "--hf")
    check_weights(source, hf, allows_mixed=dtype is not None)
    tensors = HFTensors(source)
    chunks = list(plan(hf, tensors, dtype))
    total = sum(chunk.num_bytes for chunk in chunks)
    with output_folder(out, source=source, num_bytes=total, overwrite=overwrite) as folder:
        progress = Progress("hf_to_megatron", total)
        write_checkpoint(folder, chunks, lambda chunk: progress.add(chunk.num_bytes))
        (folder / SIDE_FILES).mkdir()
        copy_side_files(source, folder / SIDE_FILES)


def plan(hf: HFConfig, tensors: HFTensors, dtype: torch.dtype | None) -> Iterator[Chunk]:
    """What is to be written, each chunk with how to read it."""
    for parameter in parameters(hf):
        yield from _chunks(parameter, tensors, dtype)


def _chunks(parameter: Parameter, tensors: HFTensors, dtype: torch.dtype | None) -> Iterator[Chunk]:
    found = {name: tensors.spec(name) for name in parameter.hf_shapes}
    dtype = dtype or next(iter(found.values()))[0]
    if parameter.is_table:
        (name,) = found
        block = max(1, BLOCK_BYTES // (parameter.shape[1] * dtype.itemsize))
        for first in range(0, parameter.shape[0], block):
            rows = min(block, parameter.shape[0] - first)
            read = partial(_table_rows, tensors, name, found[name][1], first, rows, dtype)
            offset, shape = (first, 0), (rows, parameter.shape[1])
            yield Chunk(parameter.key, parameter.shape, offset, shape, dtype, read)
    else:
        read = partial(_whole, parameter, tensors, dtype)
        shape = (*[1] * len(parameter.stack), *parameter.shape)
        yield Chunk(parameter.key, parameter.global_shape, parameter.place, shape, dtype, read)


def _table_rows(
    tensors: HFTensors, name: str, shape: tuple[int, ...], first: int, count: int, dtype: torch.dtype
) -> Tensor:
    """Rows of the vocabulary, and zeros after its last."""
    end = min(first + count, shape[0])
    rows = cast(tensors.rows(name, first, end), dtype, name) if end > first else torch.empty(0, shape[1], dtype=dtype)
    missing = count - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, shape[1])]) if missing else rows


def _whole(parameter: Parameter, tensors: HFTensors, dtype: torch.dtype) -> Tensor:
    sources = [cast(tensors[name], dtype, name) for name in parameter.hf_shapes]
    return to_shard(parameter.rule, sources, ())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft convert hf-to-megatron",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hf", type=path_argument, metavar="DIR", required=True, help="HF folder with safetensors")
    add_output_arguments(parser)

    def body(arguments: argparse.Namespace) -> None:
        if not arguments.hf.is_dir():
            raise UsageError(f"--hf {arguments.hf}: no such folder")
        convert(arguments.hf, arguments.out, dtype=CASTS.get(arguments.dtype), overwrite=arguments.overwrite)
        print(f"{arguments.out}: a Megatron checkpoint of {arguments.hf}")

    return run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
