"""Makes everything that the quickstart trains on: problems, tokenizer, and a small base model that gets some of them right.

    python launch/quickstart/make_assets.py --out tests/assets/quickstart

Out: train.parquet, held_out.parquet and model/ (an HF folder). Nothing is downloaded; the same seed gives the same files.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from problems import Problem, as_row, demonstrations, problems
from tokenizer import build_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config

NUM_TRAIN, NUM_HELD_OUT = 4000, 256


def split_problems(seed: int) -> tuple[list[Problem], list[Problem], frozenset[tuple[Any, ...]]]:
    """Held-out problems, training problems, and the signatures of both, which the demonstrations stay away from."""
    held_out = list(islice(problems(seed), NUM_HELD_OUT))
    used = frozenset(problem.signature for problem in held_out)
    train = list(islice(problems(seed + 1, without=used), NUM_TRAIN))
    return held_out, train, used | frozenset(problem.signature for problem in train)


def write_problems(path: Path, split: str, rows: Iterable[Problem]) -> None:
    pq.write_table(pa.Table.from_pylist([as_row(row, index=i, split=split) for i, row in enumerate(rows)]), path)


def vocabulary_texts(seed: int) -> Iterator[str]:
    """Texts in which every word of the generator occurs, besides the chat template's own."""
    for demonstration in islice(demonstrations(seed, without=frozenset()), 4000):
        yield demonstration.problem.text
        yield demonstration.answer
    yield from ("system\n", "user\n", "assistant\n")


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """A Qwen2 of 1.05 M parameters. head_dim is 32, the least that vLLM takes on a CPU; all else divides by 2."""
    return Qwen2Config(
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
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )


def generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    return GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=100, help="seeds problems, pupils and weights (default: 100)")
    args = parser.parse_args()

    held_out, train, _used = split_problems(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    write_problems(args.out / "train.parquet", "train", train)
    write_problems(args.out / "held_out.parquet", "held_out", held_out)
    tokenizer = build_tokenizer(vocabulary_texts(args.seed))
    tokenizer.save_pretrained(args.out / "model")
    model_config(tokenizer).save_pretrained(args.out / "model")
    generation_config(tokenizer).save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
