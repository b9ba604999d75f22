"""NFT and the paper's RFT from the same Qwen2.5 at equal cost, seed by seed. Prints the results as Markdown and draws
the curves as an SVG.

    python -m benchmarks.real_qwen.run [--seeds 2] [--out runs/real_qwen] [section.key=value ...]

Makes the assets if they are missing (prepare.py), then one run after the other; a finished run is not done again, and a
run that was interrupted goes on from its last checkpoint: the command, repeated, goes on where it was.
"""

import argparse
from pathlib import Path

from benchmarks.quickstart.run import run
from benchmarks.real_model.run import curves, places, records, stages, summary, table
from benchmarks.real_qwen.prepare import prepare

RECIPE = "benchmarks/real_qwen/recipe.toml"
METHODS = {"NFT": "algorithm.name=nft", "RFT": "algorithm.name=rft"}
"""RFT, the paper's, learns from the right answers alone, every prompt at the same weight; all else is equal."""


def folder_of(out: Path, method: str, seed: int) -> Path:
    return out / f"{method.lower()}-s{seed}"


def by_step(out: Path, seeds: range) -> list[dict[str, str]]:
    """One row an evaluation: accuracy of every run at T = 1, and how far NFT is ahead, seed by seed."""
    accuracies = {
        (method, seed): {r["step"]: r["eval/avg_at_k"] for r in records(folder_of(out, method, seed), "evaluation")}
        for method in METHODS
        for seed in seeds
    }
    rows = []
    for step in next(iter(accuracies.values())):
        row = {"step": f"{step}"} | {f"{m} {s}": f"{100 * curve[step]:.1f}%" for (m, s), curve in accuracies.items()}
        ahead = [100 * (accuracies["NFT", seed][step] - accuracies["RFT", seed][step]) for seed in seeds]
        rows.append(row | {"NFT less RFT": " ".join(f"{points:+.1f}" for points in ahead)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all runs")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 1 .. N of each method (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/real_qwen"), help="folder of assets and runs")
    arguments = parser.parse_args()
    assets, seeds = arguments.out / "assets", range(1, arguments.seeds + 1)
    prepare(assets)
    runs = {(method, seed): folder_of(arguments.out, method, seed) for seed in seeds for method in METHODS}
    for (method, seed), folder in runs.items():
        if not (folder / "cost.json").exists():
            run([*places(assets), *arguments.overrides, METHODS[method], f"run.seed={seed}"], folder, RECIPE)
    for rows in (summary, stages):
        print("\n" + table([rows(f"{method} {seed}", folder) for (method, seed), folder in runs.items()]))
    print("\n" + table(by_step(arguments.out, seeds)))
    (arguments.out / "curve.svg").write_text(
        curves({method: [folder_of(arguments.out, method, seed) for seed in seeds] for method in METHODS})
    )
    print(f"\ncurve: {arguments.out / 'curve.svg'}")


if __name__ == "__main__":
    main()
