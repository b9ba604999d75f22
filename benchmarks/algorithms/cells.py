"""The cells of the study: method x updates per rollout batch x seed, and their recipes. Called by run.py, page.py."""

from dataclasses import dataclass
from pathlib import Path

from megatron_nft.config import Config, load_config

RECIPE = Path(__file__).parent / "recipe.toml"

METHODS: dict[str, tuple[str, ...]] = {
    "NFT": ("algorithm.name=nft",),
    "RFT": ("algorithm.name=rft",),  # the paper's, every prompt weighs the same
    "RFT script": ("algorithm.name=rft_script",),  # the authors' script's, a prompt weighs 1 - p
    "GRPO": ("algorithm.name=grpo",),
    "Dr. GRPO": ("algorithm.name=dr_grpo",),
    "DAPO": ("algorithm.name=dapo",),
    # NFT with Dr. GRPO's reduction: which of the two, objective or reduction, makes a difference?
    "NFT constant": ("algorithm.name=nft", "algorithm.reduction=constant"),
}
BASE = next(iter(METHODS))
"""What the others are compared with."""
LEARNING_RATES = {1: 1e-4, 4: 5e-5, 16: 3e-5}
"""Updates per rollout batch -> learning rate, the same for all methods: off-policy so large that ratios move."""


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    method: str
    updates: int
    seed: int
    max_staleness = 0

    @property
    def name(self) -> str:
        method = self.method.lower().replace(". ", "_").replace(" ", "_")
        return f"{method}-u{self.updates}-s{self.seed}"

    def config(self, out: Path) -> Config:
        """Its resolved recipe."""
        return load_config(
            RECIPE,
            [
                *METHODS[self.method],
                f"train.updates_per_step={self.updates}",
                f"optimizer.learning_rate={LEARNING_RATES[self.updates]}",
                f"run.seed={self.seed}",
                f"run.dir={out}",
                f"run.name={self.name}",
                "run.overwrite=all",
                f'data.train=["{out}/data/train.parquet"]',
                f'data.held_out=["{out}/data/held_out.parquet"]',
            ],
        )


def all_cells(seeds: int) -> list[Cell]:
    """Seed by seed, so that a study cut short still compares like with like."""
    return [
        Cell(m, u, s)
        for s in range(1, seeds + 1)
        for u in LEARNING_RATES
        for m in METHODS
        if u == 1 or m != "NFT constant"  # on-policy, where the two objectives are one
    ]
