"""The quickstart with adapters beside the whole model: accuracy, seconds, memory, bytes. Prints a table as Markdown.

    python -m benchmarks.lora.run [--out FOLDER]

A finished run is not done again (its folder says so), so an interrupted series goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.quickstart.run import run

ADAPTERS = ["lora.rank=8", "optimizer.learning_rate=5e-4"]
RUNS = {
    "whole model": [],
    "adapters, merged": [*ADAPTERS, "lora.sync=merged"],
    "adapters, alone": [*ADAPTERS, "lora.sync=adapter"],
}
SECONDS = ("time/rollout_s", "time/train_s", "time/sync_s", "time/step_s")
COLUMNS = (
    "| | greedy before | after | points | rollout s | train s | sync s | step s | MB a sync | MB a checkpoint | "
    "loop min | peak GB |"
)


def row(name: str, folder: Path) -> str:
    """One line of the table: medians of the steps, from metrics.jsonl; the bytes of the last checkpoint."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    first, *_, last = [100 * r["eval/greedy_accuracy"] for r in records if r["kind"] == "evaluation"]
    cost = json.loads((folder / "cost.json").read_text())
    loop = sum(r.get("time/step_s", 0) + r.get("time/evaluate_s", 0) for r in records)
    seconds = " | ".join(f"{median(r[key] for r in steps if key in r):.2f}" for key in SECONDS)
    sent = median(r["weights/bytes"] for r in steps if "weights/bytes" in r) / 1e6
    stored = sum(f.stat().st_size for f in (folder / "checkpoints" / "latest").glob("*.distcp")) / 1e6
    return (
        f"| {name} | {first:.1f}% | {last:.1f}% | {last - first:+.1f} | {seconds} | {sent:.2f} | {stored:.2f} | "
        f"{loop / 60:.1f} | {cost['peak_gb']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_lora"), help="folder of the runs")
    out = parser.parse_args().out
    rows = []
    for name, overrides in RUNS.items():
        folder = out / name.replace(", ", "_").replace(" ", "_")
        if not (folder / "cost.json").exists():
            run([*overrides, "run.overwrite=all"], folder)
        rows.append(row(name, folder))
    print("\n".join([COLUMNS, "|" + " --- |" * (COLUMNS.count("|") - 1), *rows]))


if __name__ == "__main__":
    main()
