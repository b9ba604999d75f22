"""Proves one node's install, without Ray and vLLM: the actor in a parallel layout, against two oracles.

    megatron-nft smoke                                  one process: does it work at all?
    megatron-nft smoke --ranks 4 --tp 2 --pp 2          a layout, a process a rank
    megatron-nft smoke --ranks 8 --tp 4 --precision fp8-blockwise --model DIR
    megatron-nft smoke --ranks 8 --tp 2 --ep 4          a mixture of experts, of its own unless --model
    torchrun --nproc-per-node 4 -m megatron_nft.smoke --tp 2 --pp 2       the same, started by torchrun

Data parallelism takes the ranks that remain. Without --model a small one is taken that fits any tp and
pp. What libraries print goes into a log. Checks, each a line: log-probs against `transformers`;
loss, gradient norm and log-probs against the same program on one rank; that NFT steps make right
answers likelier and wrong ones less so; that the exported HF folder is the trained model; that an
update after saving and loading a checkpoint is the same: to the last bit on a CPU and with
--deterministic, to the number format on a GPU without. Then times a step.

Ends with `smoke: N passed, M failed`.

Exit status: 0 none failed, 1 some did, 2 the arguments don't fit, 3 a rank failed.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_nft.cluster.connections import connections, device_generation
from megatron_nft.config import Config, RecipeError
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.smoke.inputs import MODEL, check_ranks, make_config, make_sequences
from megatron_nft.smoke.mixture import make_mixture
from megatron_nft.smoke.model import default_model
from megatron_nft.smoke.ranks import run_ranks
from megatron_nft.smoke.screen import FOLDER, Screen
from megatron_nft.types import TrainSequence


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="megatron-nft smoke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--ranks", type=int, help="processes to start here (default: this one, or torchrun's)")
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
    made.add_argument("--model", help=f"HF folder (default: {MODEL}, or one made for the layout or for --ep)")
    made.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = parser().parse_args(argv)
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    os.environ |= connections(tp=arguments.tp, cp=arguments.cp, generation=device_generation())
    starts_ranks = arguments.ranks is not None and "RANK" not in os.environ
    if starts_ranks:
        world_size = arguments.ranks
    with TemporaryDirectory(prefix="smoke-") as scratch:
        try:
            check_ranks(arguments, world_size, starts=starts_ranks)
            config, sequences = _inputs(arguments, rank, world_size, Path(scratch))
        except (RecipeError, ModelFolderError) as error:
            if rank == 0:
                print(f"error: {error}", file=sys.stderr)
            return 2
        if starts_ranks:
            from megatron_nft.actor.topology import free_address

            given = list(sys.argv[1:] if argv is None else argv)
            return run_ranks(world_size, [*given, "--model", arguments.model], free_address())
        return _check(config, sequences, arguments.measure, rank)


def _inputs(
    arguments: argparse.Namespace, rank: int, world_size: int, scratch: Path
) -> tuple[Config, list[TrainSequence]]:
    import torch  # not for --help

    if arguments.model is None and (arguments.ep > 1 or arguments.etp is not None):
        arguments.model = str(make_mixture(scratch / "mixture"))
    if arguments.model is None:
        arguments.model = str(default_model(arguments.tp, arguments.pp * arguments.vpp, rank=rank))
    config = make_config(arguments, world_size, "cuda" if torch.cuda.is_available() else "cpu")
    return config, make_sequences(arguments.model, read_hf_config(arguments.model))


def _check(config: Config, sequences: list[TrainSequence], measured: Path | None, rank: int) -> int:
    """This rank's part, with what libraries say kept in a log."""
    screen = Screen(rank)
    try:
        from megatron_nft.smoke.checks import check_install, measure  # Megatron, which takes seconds, and warns of much

        if measured:
            measure(config, sequences, measured)
            return 0
        return 1 if check_install(config, sequences, screen) else 0
    except RecipeError as error:  # of the device, say; every rank's
        if rank == 0 or FOLDER in os.environ:
            screen.refuse(str(error))
        return 2
    except Exception as error:
        traceback.print_exc()  # into the log
        screen.refuse(f"rank {rank}: {type(error).__name__}: {' '.join(str(error).split())}")
        return 3


if __name__ == "__main__":
    sys.exit(main())
