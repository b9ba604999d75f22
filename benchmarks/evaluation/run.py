"""The quickstart's base model through `megatron_nft.evaluate`; with --data also SmolLM2-135M-Instruct on those files.

    python -m benchmarks.evaluation.run [--data gsm8k_test.parquet aime24.parquet] [--n 8]

The second needs what `python -m benchmarks.real_model.prepare` makes. Prints what the command prints.
"""

import argparse
import subprocess
import sys

RECIPE, SMOLLM2 = "launch/recipes/quickstart.toml", "runs/real_model/assets/model"
SMALL = ["--n", "2", "--max-prompts", "60", "--max-prompt-tokens", "512", "--max-answer-tokens", "256"]
ENGINE = ["rollout.dtype=float32", "rollout.max_concurrent=32"]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="for SmolLM2-135M-Instruct")
    parser.add_argument("--n", default="8", help="answers to each of the quickstart's problems")
    arguments = parser.parse_args()
    evaluate = [sys.executable, "-m", "megatron_nft.evaluate"]
    runs = [[*evaluate, RECIPE, "--n", arguments.n, "--out", "runs/evaluation/quickstart"]]
    if arguments.data:
        given = ["--model", SMOLLM2, "--data", *arguments.data, *SMALL, "--out", "runs/evaluation/smollm2", *ENGINE]
        runs.append([*evaluate, *given])
    return max(subprocess.run(command, check=False).returncode for command in runs)


if __name__ == "__main__":
    sys.exit(main())
