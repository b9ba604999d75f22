"""What saving costs a run: the quickstart without checkpoints, and with one every step, in background and not.

    python -m benchmarks.checkpoint.run --rounds 2 --steps 10

The three go in turn, `--rounds` times. They are the same run bit for bit, so each step is compared with itself: the
seconds from its record to the next (all that lies between counts: the copy, the writing beside it, the publishing).
Prints the table of the results page.
"""

import argparse
import itertools
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from statistics import median

WAYS = {
    "none": ["checkpoint.every=0"],
    "background": ["checkpoint.every=1"],
    "waiting": ["checkpoint.every=1", "checkpoint.in_background=false"],
}


def run(name: str, overrides: list[str], out: Path) -> list[dict]:
    """The steps' records."""
    command = [sys.executable, "-m", "megatron_nft.train", "launch/recipes/quickstart.toml", "data.held_out=[]"]
    place = [f"run.dir={out}", f"run.name={name}", "run.overwrite=all"]
    subprocess.run([*command, *place, *overrides], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]


def seconds(records: list[dict]) -> list[float]:
    """From each step's end to the next one's."""
    ends = [datetime.fromisoformat(record["time"]).timestamp() for record in records]
    return [after - before for before, after in itertools.pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_checkpoint"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of all runs")
    arguments = parser.parse_intermixed_args()
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    waits: dict[str, list[float]] = {way: [] for way in WAYS}
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    losses = set()
    for number in range(arguments.rounds):
        for way, overrides in WAYS.items():
            steps = [f"train.steps={arguments.steps}", *overrides, *arguments.overrides]
            records = run(f"{way}_{number}", steps, arguments.out)
            found[way].append(seconds(records))
            waits[way] += [record.get("time/checkpoint_s", 0.0) for record in records]
            shares[way] += [record.get("time/checkpoint_s", 0.0) / record["time/step_s"] for record in records]
            losses.add(tuple(record["nft/loss"] for record in records))
            print(f"round {number + 1}, {way}: {median(found[way][-1]):.2f} s a step", file=sys.stderr)
    assert len(losses) == 1, "the runs are not the same run"
    print("| checkpoints | step, s (median) | against none, each step with itself | time/checkpoint_s | of its step |")
    print("|---|---|---|---|---|")
    for way, rounds in found.items():
        ratios = [
            a / b for mine, none in zip(rounds, found["none"], strict=True) for a, b in zip(mine, none, strict=True)
        ]
        spread = f"{100 * (median(ratios) - 1):+.1f}% (of {len(ratios)} steps)" if way != "none" else ""
        every = [value for one in rounds for value in one]
        share = f"{100 * median(shares[way]):.1f}%"
        print(f"| {way} | {median(every):.2f} | {spread} | {median(waits[way]):.2f} | {share} |")


if __name__ == "__main__":
    main()
