"""Proves one node's install, without Ray and vLLM: the actor in a parallel layout, against two oracles.

    megatron-nft smoke                                                one process: does it work at all?
    torchrun --nproc-per-node 4 -m megatron_nft.smoke --tp 2 --pp 2   a layout, a process a rank
    torchrun --nproc-per-node 8 -m megatron_nft.smoke --tp 4 --precision fp8-blockwise --model DIR
    torchrun --nproc-per-node 8 -m megatron_nft.smoke --tp 2 --ep 4   a mixture of experts, of its own unless --model

Data parallelism takes the ranks that remain. Checks, each a line: log-probs against `transformers`;
loss, gradient norm and log-probs against the same program on one rank; that NFT steps make right
answers likelier and wrong ones less so; that the exported HF folder is the trained model; that an
update after saving and loading a checkpoint is the same: to the last bit on a CPU and with
--deterministic, to the number format on a GPU without. Then times a step.

Ends with `smoke: N passed, M failed`.

Exit status: 0 none failed, 1 some did, 2 the arguments don't fit.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_nft.cluster.connections import connections, device_generation
from megatron_nft.config import RecipeError
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.smoke.inputs import MODEL, make_config, make_sequences
from megatron_nft.smoke.mixture import make_mixture


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="megatron-nft smoke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--tp", type=int, default=1, help="tensor-parallel size, with sequence parallelism")
    made.add_argument("--pp", type=int, default=1, help="pipeline-parallel size")
    made.add_argument("--vpp", type=int, default=1, help="virtual pipeline stages per rank")
    made.add_argument("--cp", type=int, default=1, help="context-parallel size")
    made.add_argument("--ep", type=int, default=1, help="expert-parallel size, out of the ranks of tp, cp and dp")
    made.add_argument(
        "--etp", type=int, help="tensor-parallel size of experts (default: 1 with --ep, else that of --tp)"
    )
    made.add_argument("--precision", help="fp32, bf16, fp8-blockwise ... (default: bf16 on CUDA, fp32 on a CPU)")
    made.add_argument(
        "--deterministic", action="store_true", help="actor.deterministic: kernels that repeat themselves"
    )
    made.add_argument("--model", help=f"HF folder (default: {MODEL}; with --ep or --etp a small random mixture)")
    made.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = parser().parse_args(argv)
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    os.environ |= connections(tp=arguments.tp, cp=arguments.cp, generation=device_generation())
    with TemporaryDirectory(prefix="smoke-") as scratch:
        if arguments.model is None:
            has_experts = arguments.ep > 1 or arguments.etp is not None
            arguments.model = str(make_mixture(Path(scratch) / "mixture")) if has_experts else MODEL
        return _run(arguments, rank, world_size)


def _run(arguments: argparse.Namespace, rank: int, world_size: int) -> int:
    import torch  # not for --help

    try:
        config = make_config(arguments, world_size, "cuda" if torch.cuda.is_available() else "cpu")
        sequences = make_sequences(arguments.model, read_hf_config(arguments.model))
    except (RecipeError, ModelFolderError) as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    from megatron_nft.smoke.checks import check_install, measure  # Megatron, which takes seconds, and warns of much

    if arguments.measure:
        measure(config, sequences, arguments.measure)
        return 0
    return 1 if check_install(config, sequences) else 0


if __name__ == "__main__":
    sys.exit(main())
