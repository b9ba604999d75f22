"""NFT and RFT from the same real model at equal cost. Prints the results as Markdown and draws the curve as an SVG.

    python -m benchmarks.real_model.run [--out runs/real_model] [section.key=value ...]

Makes the assets if they are missing (prepare.py), then one run after the other; a finished run is not done again (its
folder under --out says so), so that the command, repeated, goes on where it was, and prints at once when all is done.
"""

import argparse
import json
import tomllib
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.quickstart.run import run
from benchmarks.real_model.curve import draw
from benchmarks.real_model.prepare import prepare

RECIPE = "benchmarks/real_model/recipe.toml"
METHODS = {"nft": ["algorithm.name=nft"], "rft": ["algorithm.name=rft_script"]}
"""Name of the run -> what differs. RFT learns from the right answers alone; all else is equal."""
PANELS = {
    "held out, sampled at T = 1": ("evaluation", "eval/avg_at_k"),
    "held out, greedy": ("evaluation", "eval/greedy_accuracy"),
    "training prompts, T = 1": ("step", "nft/correct_rate"),
}
"""Title of a drawing -> kind of record, metric."""


def accuracy(fraction: float, count: int) -> str:
    """ "31.7% ± 6.0": with the binomial standard error of `count` answers, as if they were independent."""
    return f"{100 * fraction:.1f}% ± {100 * (fraction * (1 - fraction) / count) ** 0.5:.1f}"


def summary(name: str, folder: Path) -> dict[str, str]:
    """Column -> cell of a finished run, from metrics.jsonl and cost.json."""
    steps, evaluations = records(folder, "step"), records(folder, "evaluation")
    first, last, prompts = evaluations[0], evaluations[-1], int(evaluations[0]["eval/prompts"])
    samples = tomllib.loads((folder / "recipe.toml").read_text())["evaluate"]["samples"]
    cost = json.loads((folder / "cost.json").read_text())
    total = {key: sum(r[key] for r in steps) for key in ("rollout/answers", "actor/tokens", "time/step_s")}
    return {
        "run": name,
        "greedy before": accuracy(first["eval/greedy_accuracy"], prompts),
        "after": accuracy(last["eval/greedy_accuracy"], prompts),
        f"avg@{samples} before": accuracy(first["eval/avg_at_k"], prompts * samples),
        f"avg@{samples} after": accuracy(last["eval/avg_at_k"], prompts * samples),
        "answers sampled": f"{total['rollout/answers']:.0f}",
        "tokens trained on": f"{total['actor/tokens']:.0f}",
        "gap mean, worst step": f"{max(r['rollout/logprob_gap_mean'] for r in steps):.1e}",
        "steps min": f"{total['time/step_s'] / 60:.1f}",
        "all min": f"{cost['minutes']:.1f}",
        "peak GB": f"{cost['peak_gb']:.1f}",
    }


def by_step(folders: dict[str, Path]) -> list[dict[str, str]]:
    """One row an evaluation: accuracies of every run, and the answers it had sampled for training by then."""
    rows: dict[int, dict[str, str]] = {}
    for name, folder in folders.items():
        steps = records(folder, "step")
        for r in records(folder, "evaluation"):
            sampled = sum(s["rollout/answers"] for s in steps if s["step"] <= r["step"])
            rows.setdefault(r["step"], {"step": f"{r['step']}"}).update(
                {
                    f"{name.upper()} greedy": f"{100 * r['eval/greedy_accuracy']:.1f}%",
                    f"{name.upper()} avg@k": f"{100 * r['eval/avg_at_k']:.1f}%",
                    f"{name.upper()} answers": f"{sampled:.0f}",
                }
            )
    return list(rows.values())


def stages(name: str, folder: Path) -> dict[str, str]:
    """Column -> median seconds per step of each stage."""
    steps = records(folder, "step")
    keys = {key: key.removeprefix("time/").removesuffix("_s") for key in steps[0] if key.startswith("time/")}
    return {"run": name} | {label: f"{median(r[key] for r in steps):.1f}" for key, label in keys.items()}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind ("step", "evaluation") of metrics.jsonl, in order."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def table(rows: list[dict[str, str]]) -> str:
    """Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def curves(groups: dict[str, list[Path]]) -> str:
    """The SVG of what the runs measured: one line a group of runs, the mean of them."""
    return draw(
        {
            title: {name: mean_points(folders, kind, key) for name, folders in groups.items()}
            for title, (kind, key) in PANELS.items()
        }
    )


def mean_points(folders: list[Path], kind: str, key: str) -> list[tuple[float, float]]:
    """(step, mean) of runs with the same steps."""
    # A step's answers are sampled before its updates: they show the model of the step before.
    runs = [{r["step"] - (kind == "step"): r[key] for r in records(folder, kind)} for folder in folders]
    return [(step, mean(run[step] for run in runs)) for step in runs[0]]


def places(assets: Path) -> list[str]:
    """Overrides: where prepare.py has put model and data."""
    return [
        f"model.path={assets}/model",
        f'data.train=["{assets}/train.parquet"]',
        f'data.held_out=["{assets}/held_out.parquet"]',
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="section.key=value, for both runs")
    parser.add_argument("--out", type=Path, default=Path("runs/real_model"), help="folder of assets and runs")
    arguments = parser.parse_args()
    assets = arguments.out / "assets"
    prepare(assets)
    folders = {name: arguments.out / name for name in METHODS}
    for name, folder in folders.items():
        if not (folder / "cost.json").exists():
            run([*places(assets), *arguments.overrides, *METHODS[name], "run.overwrite=all"], folder, RECIPE)
    for rows in (summary, stages):
        print("\n" + table([rows(name.upper(), folder) for name, folder in folders.items()]))
    print("\n" + table(by_step(folders)))
    (arguments.out / "curve.svg").write_text(curves({name.upper(): [folder] for name, folder in folders.items()}))
    print(f"\ncurve: {arguments.out / 'curve.svg'}")


if __name__ == "__main__":
    main()
