"""The staleness study: does NFT with older answers learn as well, and which correction helps? Trains every cell, then
writes the page.

    python -m benchmarks.async.staleness --out runs/staleness            (160 runs of about a minute on a core each)

neg_weight 0.5 and 1, staleness 1, 2 and 4, five corrections, 5 seeds, and the synchronous runs that all are compared
with: on the longest of the quickstart's stories (benchmarks/algorithms), of which the base model gets few right, and no
run gets all. Resumable (../lanes.py): a finished cell is kept, and the page is made of what is there.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.lanes import Study
from megatron_nft.config import Config, load_config

write_page = import_module("benchmarks.async.staleness_page").write_page  # "async" is a word of Python's own

RECIPE = Path(__file__).resolve().parents[1] / "algorithms" / "recipe.toml"
CORRECTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "cap": ("algorithm.importance_cap=2",),
    "band": ("algorithm.corrections={token_mask = [0.5, 5.0]}",),
    # The ratio held to the policy that sampled, without and with its expectation taken out.
    "engine": ("algorithm.old_logprobs=engine",),
    "centering": ("algorithm.old_logprobs=engine", "algorithm.score_centering=true", "rollout.top_logprobs=32"),
}
STALENESS, WEIGHTS = (1, 2, 4), (1.0, 0.5)
SETTINGS = (
    "train.updates_per_step=4",
    "train.groups_per_step=8",
    "train.steps=12",
    "train.evaluate_every=3",
    "optimizer.learning_rate=7e-5",  # at which ratios move so far that corrections act
    "evaluate.samples=0",
    "evaluate.in_background=false",
    "checkpoint.every=0",
    "run.overwrite=all",
)
KEPT = (
    "async/staleness_mean",
    "nft/correct_rate",
    "nft/ratio_max",
    "nft/truncated_fraction",
    "nft/masked_fraction",
    "nft/moved_right",
    "nft/moved_wrong",
    "rollout/gap_kl",
    "rollout/gap_ess_tokens",
    "rollout/top_mass",
)
"""Metrics of a step that a cell keeps the mean of."""


@dataclass(frozen=True)
class Cell:
    """One run of the study. Staleness 0: synchronous."""

    neg_weight: float
    staleness: int
    correction: str
    seed: int

    @property
    def max_staleness(self) -> int:
        return self.staleness

    @property
    def name(self) -> str:
        return f"w{self.neg_weight:g}-k{self.staleness}-{self.correction}-s{self.seed}"

    def config(self, out: Path) -> Config:
        """Its resolved recipe."""
        own = [f"algorithm.neg_weight={self.neg_weight}", f"rollout.max_staleness={self.staleness}"]
        places = [f"run.seed={self.seed}", f"run.dir={out}", f"run.name={self.name}"]
        data = [f'data.{split}=["{out}/data/{split}.parquet"]' for split in ("train", "held_out")]
        return load_config(RECIPE, [*SETTINGS, *own, *CORRECTIONS[self.correction], *places, *data])


def all_cells(seeds: int) -> list[Cell]:
    """Seed by seed, so that a study cut short still compares like with like; what only explains another last."""
    cells = []
    for seed in range(1, seeds + 1):
        for weight in WEIGHTS:
            cells.append(Cell(weight, 0, "none", seed))
            cells += [Cell(weight, staleness, name, seed) for staleness in STALENESS for name in CORRECTIONS]
    return sorted(cells, key=lambda cell: cell.correction == "engine")


def kept(cell: Cell, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page wants to know of a cell besides its curve."""
    means = {}
    for name in KEPT:
        if values := [r[name] for r in steps if r.get(name) is not None]:
            means[name] = max(values) if name == "nft/ratio_max" else sum(values) / len(values)
    return {**vars(cell), "means": means}


STUDY = Study(
    "benchmarks.async.staleness", "runs/staleness", all_cells, kept, lambda out, page, seeds: write_page(out, page)
)

if __name__ == "__main__":
    STUDY.main(__doc__)
