"""What a run says when it ends: how it ended, what it gave, where its files are, what to type next.

A recipe, a verdict and records come in, labelled texts go out. Called by `observe.report`.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_nft.config import Config
from megatron_nft.observe.terminal import accuracy_rows
from megatron_nft.types import StepReport

SHOWN = 3
"""Checkpoints that are named."""


def closing_rows(
    config: Config, verdict: str, records: Sequence[StepReport], minutes: float, *, comes_again: bool = False
) -> dict[str, str]:
    """Label -> text, in their order.

    Args:
        verdict: how the run ended: "done", "interrupted: ...", "failed: ..."; of several lines the first.
        minutes: that it took.
        comes_again: the error would end the same command again.
    """
    folder, is_done = config.run_dir, verdict == "done"
    rows = {"run": f"{config.run.name}: {verdict.strip().splitlines()[0] if verdict.strip() else verdict}"}
    rows |= accuracy_rows(records)
    rows["steps"] = f"{sum(r.kind == 'step' for r in records)} of {config.train.steps}"
    rows["minutes"] = f"{minutes:.1f}"
    if is_done and (folder / "hf" / "config.json").is_file():
        rows["model"] = str(folder / "hf")
    if saved := _checkpoints(folder):
        rows["checkpoints"] = f"{folder / 'checkpoints'}: {', '.join(saved[-SHOWN:])}"
    rows["records"] = f"{folder}: metrics.jsonl, rollouts.jsonl, recipe.toml"
    rows["report"] = str(folder / "report.html")
    if "model" in rows:
        more = "" if config.data.held_out else " --data FILE"
        if not config.evaluate.samples:  # in a run that is greedy only; the command samples
            more += " --n 1" if config.evaluate.samples_of else " --n 1 --temperature 0"
        rows["next"] = f"megatron-nft evaluate {folder / 'recipe.toml'} --model {folder / 'hf'}{more}"
    elif not is_done:
        goes_on = f"the same command goes on from {saved[-1]}" if saved else "the same command begins again"
        rows["next"] = (
            f"first see to what the error says, or it comes again; then {goes_on}" if comes_again else goes_on
        )
    return rows


def _checkpoints(folder: Path) -> list[str]:
    """Names of those that are whole, the newest last."""
    names = [path.name for path in (folder / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    return sorted(names, key=lambda name: int(name[5:]))
