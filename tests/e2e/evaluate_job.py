"""Run by test_evaluate.py in a process of its own: evaluates with one engine and no Ray, undisturbed and interrupted.

Usage: evaluate_job.py FOLDER CUTS EVALUATION_ARGUMENT ... Leaves evaluations' folders: FOLDER/whole; FOLDER/cut,
which is interrupted CUTS times, and its file then cut at a random byte; FOLDER/again, the first one once more, with
engines that answer nothing. Needs `engine_environment`.
"""

import random
import shutil
import sys
from pathlib import Path

from megatron_nft import evaluate
from megatron_nft.evaluation.command_line import parse_arguments, read_settings
from megatron_nft.rollout.api import answer_here
from megatron_nft.rollout.vllm.engine import VllmEngine


class Interrupted(Exception):
    """In place of a signal."""


def stream_of(engine: VllmEngine, limit: int | None = None):
    """The engine in the place of `stream_groups`; interrupted after `limit` prompts."""

    def stream_groups(_, prompts, sampling, rollout):
        for place, group in enumerate(answer_here(engine, prompts, sampling)):
            if place == limit:
                raise Interrupted
            yield place, group

    return stream_groups


def main(folder: Path, cuts: int) -> None:
    config, _ = read_settings(parse_arguments())
    engine = VllmEngine(
        config.model.path, config.rollout, device="cpu", max_model_len=config.max_sequence_tokens, seed=config.run.seed
    )

    def run(out: Path, limit: int | None = None) -> None:
        evaluate.sample_with_engines = lambda *given: evaluate.sample(None, *given)
        evaluate.stream_groups = stream_of(engine, limit)
        evaluate.evaluate_benchmarks(config, out)

    run(folder / "whole")
    rng, cut = random.Random(1), folder / "cut"
    for _ in range(cuts):
        try:
            run(cut, limit=rng.randrange(1, 12))
        except Interrupted:
            file = cut / evaluate.SAMPLES
            file.write_bytes(file.read_bytes()[: -rng.randrange(0, 900)])
    run(cut)

    again = folder / "again"
    shutil.copytree(folder / "whole", again)
    run(again, limit=0)


if __name__ == "__main__":
    folder, cuts = Path(sys.argv.pop(1)), int(sys.argv.pop(1))
    main(folder, cuts)
