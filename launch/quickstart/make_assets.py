"""Makes what the quickstart trains on: problems, a tokenizer, and a base model that gets some problems right.

    python launch/quickstart/make_assets.py --out tests/assets/quickstart

Out: train.parquet, held_out.parquet and model/ (an HF folder); beside them what it was made of (untrained/,
demonstrations/, runs/). Nothing is downloaded; a seed gives the same problems and tokenizer again, and the same weights
up to rounding.

What the base model is, honestly: a Qwen2 of 1 M parameters, trained from scratch in two stages. First a textbook: right
solutions, and sheets of sums. Then pupils, most of whom write bare sums and take a wrong operation or forget a step,
and a third of whom work with care (see problems.py). The model imitates that mix, and so gets most answers wrong, but
the careful way of working is in it; what NFT has to do is to find that out by verdicts alone. No problem of
train.parquet or held_out.parquet is among the textbook's or the demonstrations', under whatever names.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads; at this size, more only wait

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from probe import probe
from problems import Problem, as_row, demonstrations, drills, problems, right_answer
from tokenizer import build_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from warm_up import Stage, warm_up

NUM_TRAIN, NUM_HELD_OUT = 4000, 256


def split_problems(seed: int) -> tuple[list[Problem], list[Problem], frozenset[tuple[Any, ...]]]:
    """Training problems, held-out problems, and the signatures of both, which the demonstrations stay away from."""
    held_out = list(islice(problems(seed), NUM_HELD_OUT))
    used = frozenset(problem.signature for problem in held_out)
    train = list(islice(problems(seed + 1, without=used), NUM_TRAIN))
    return train, held_out, used | frozenset(problem.signature for problem in train)


def write_problems(path: Path, split: str, rows: Iterable[Problem]) -> None:
    pq.write_table(pa.Table.from_pylist([as_row(row, index=i, split=split) for i, row in enumerate(rows)]), path)


def vocabulary_texts(seed: int) -> Iterator[str]:
    """Texts in which every word of the generator occurs, besides the chat template's own."""
    for demonstration in islice(demonstrations(seed, without=frozenset()), 4000):
        yield demonstration.problem.text
        yield demonstration.answer
    yield from ("system\n", "user\n", "assistant\n")


def write_untrained_model(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """A Qwen2 of 1.06 M parameters. head_dim is 32, the least that vLLM takes on a CPU; all else divides by 2."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stages(seed: int, used: frozenset[tuple[Any, ...]]) -> list[Stage]:
    """The textbook, then the pupils."""
    textbook = ((p.text, right_answer(p)) for p in problems(seed + 3, without=used, unique=False))
    pupils = ((d.problem.text, d.answer) for d in demonstrations(seed + 2, without=used))
    return [
        Stage(name="textbook", stories=textbook, drills_share=0.3),
        Stage(name="pupils", stories=pupils, drills_share=0.1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=100, help="seeds problems, pupils and weights (default: 100)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, held_out, used = split_problems(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    write_problems(args.out / "train.parquet", "train", train)
    write_problems(args.out / "held_out.parquet", "held_out", held_out)
    tokenizer = build_tokenizer(vocabulary_texts(args.seed))
    write_untrained_model(args.out / "untrained", tokenizer, args.seed)
    print(
        f"{len(train)} training and {len(held_out)} held-out problems, {len(tokenizer)} tokens: in {args.out}",
        flush=True,
    )

    warm_up(args.out, stages(args.seed, used), drills(args.seed + 2), seed=args.seed)
    print(probe(args.out / "model", held_out))


if __name__ == "__main__":
    main()
