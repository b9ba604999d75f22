"""Is a Megatron checkpoint the model of an HF folder? Every tensor bit by bit, then the logits.

    megatron-nft verify --hf Qwen2.5-0.5B --megatron Qwen2.5-0.5B-megatron
    megatron-nft verify --hf Qwen2.5-0.5B --no-logits --scratch /scratch

Without --megatron the round trip is tried: HF -> Megatron -> HF, in a folder under --scratch that is
removed again. The logits are compared with those of `transformers`. Each check is a line.

Exit status: 0 all passed, 1 one failed, 2 wrong arguments, 130 interrupted.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoint_tools import hf_to_megatron, megatron_to_hf
from checkpoint_tools.command import Progress, UsageError, dtype_name, run
from checkpoint_tools.megatron_folder import MegatronFolder
from megatron_nft.config import path_argument
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters
from megatron_nft.families.weight_files import NOT_WEIGHTS, check_weights
from megatron_nft.weights.hf_tensors import HFTensors

LOGITS_TOLERANCE = 1e-4
"""Largest mean |difference| of log-probs, in nats: that of smoke's fp32 layouts."""


@dataclass(frozen=True)
class Check:
    """A line of the outcome."""

    name: str
    passed: bool
    words: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.words}"


def compare_folders(first: Path, second: Path) -> Check:
    """Bit by bit, all tensors of two HF folders."""
    one, other = HFTensors(first), HFTensors(second)
    names = set(one.names)
    if read_hf_config(first, "--hf").tie_word_embeddings:
        names.discard("lm_head.weight")  # a second name of the embedding, which some folders have
    names = {name for name in names if not name.endswith(NOT_WEIGHTS)}
    wrong = sorted(names ^ set(other.names)) or [n for n in sorted(names) if not _same_bits(one[n], other[n])]
    words = f"{len(names)} tensors"
    if wrong:
        words = f"{len(wrong)} of {len(names)} tensors differ, the first is {wrong[0]}"
    return Check("round trip HF -> Megatron -> HF, bit by bit", not wrong, words)


def compare_tensors(hf_folder: Path, checkpoint: Path) -> Check:
    """Bit by bit, an HF folder and a checkpoint; one of another number format, as its cast would be.

    Raises:
        CheckpointError, ModelFolderError: one of the two is not whole, or is another model.
    """
    hf, stored = read_hf_config(hf_folder, "--hf"), MegatronFolder(checkpoint)
    check_weights(hf_folder, hf, allows_mixed=True)
    tensors = HFTensors(hf_folder)
    wrong, names, casts = [], set(), set()
    model = [(parameter, megatron_to_hf.find(stored, parameter, hf)) for parameter in parameters(hf)]
    progress = Progress("verify", sum(parameter.numel * tensor.dtype.itemsize for parameter, tensor in model))
    for parameter, tensor in model:
        for rows in megatron_to_hf.hf_rows(stored, parameter, tensor):
            expected = tensors.rows(rows.name, rows.first, rows.first + len(rows.numbers))
            if expected.dtype != tensor.dtype:
                casts.add(f"{dtype_name(expected.dtype)} cast to {dtype_name(tensor.dtype)}")
            names.add(rows.name)
            progress.add(rows.numbers.nbytes)
            if not _same_bits(expected.to(tensor.dtype), rows.numbers):
                wrong.append(rows.name)
    words = f"{len(names)} tensors{''.join(f', {cast}' for cast in sorted(casts))}"
    if wrong:
        words = f"{len(set(wrong))} of {len(names)} tensors differ, the first is {wrong[0]}"
    return Check("checkpoint against the HF folder, bit by bit", not wrong, words)


def compare_logits(hf_folder: Path, checkpoint: Path, num_tokens: int) -> Check:
    """Log-probs over the whole vocabulary after each of some random tokens."""
    from checkpoint_tools.logits import megatron_logits, transformers_logits

    vocab_size = read_hf_config(hf_folder, "--hf").vocab_size
    token_ids_T = torch.randint(0, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0))
    expected = transformers_logits(hf_folder, token_ids_T).log_softmax(-1)
    found = megatron_logits(checkpoint, hf_folder, token_ids_T).log_softmax(-1)
    gap = (found - expected).abs()
    words = f"{num_tokens} tokens, mean |difference| {gap.mean():.1e} nats, max {gap.max():.1e}"
    return Check("logits against transformers", bool(gap.mean() <= LOGITS_TOLERANCE), words)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """NaN equals NaN here, and 0 differs from -0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@contextmanager
def _checkpoint(arguments: argparse.Namespace, checks: list[Check]) -> Iterator[Path]:
    """The checkpoint to check; without one, that of the round trip."""
    if arguments.megatron is not None:
        yield arguments.megatron
        return
    with tempfile.TemporaryDirectory(prefix="verify-", dir=arguments.scratch) as scratch:
        checkpoint, back = Path(scratch) / "megatron", Path(scratch) / "hf"
        hf_to_megatron.convert(arguments.hf, checkpoint)
        megatron_to_hf.convert(checkpoint, back)
        _tell(checks, compare_folders(arguments.hf, back))
        yield checkpoint


def _tell(checks: list[Check], check: Check) -> None:
    checks.append(check)
    print(check, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf", type=path_argument, metavar="DIR", required=True, help="HF folder that is right")
    parser.add_argument(
        "--megatron", type=path_argument, metavar="DIR", help="checkpoint to compare with it (default: the round trip)"
    )
    parser.add_argument("--no-logits", action="store_true", help="leave the logits out: they need the model twice")
    parser.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="length of the sequence for the logits (default: 64)"
    )
    parser.add_argument(
        "--scratch",
        type=path_argument,
        metavar="DIR",
        help="where the round trip may write (default: the temporary folder)",
    )

    def body(arguments: argparse.Namespace) -> int:
        for folder in (arguments.hf, arguments.megatron, arguments.scratch):
            if folder is not None and not folder.is_dir():
                raise UsageError(f"{folder}: no such folder")
        checks: list[Check] = []
        with _checkpoint(arguments, checks) as checkpoint:
            _tell(checks, compare_tensors(arguments.hf, checkpoint))
            if not arguments.no_logits:
                _tell(checks, compare_logits(arguments.hf, checkpoint, arguments.tokens))
        failed = sum(not check.passed for check in checks)
        print(f"verify: {len(checks) - failed} passed, {failed} failed")
        return int(failed > 0)

    return run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
