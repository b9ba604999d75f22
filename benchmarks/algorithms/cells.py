"""The cells of the study: method x updates per rollout batch x seed, and their recipes. Called by run.py, page.py."""

from dataclasses import dataclass
from pathlib import Path

from megatron_nft.config import Config, load_config

RECIPE = Path(__file__).parent / "recipe.toml"

METHODS: dict[str, tuple[str, ...]] = {
    "NFT 1": ("algorithm.name=nft",),
    "NFT 0.5": ("algorithm.name=nft", "algorithm.neg_weight=0.5"),
    "RFT": ("algorithm.name=rft_script",),
    "GRPO": ("algorithm.name=grpo",),
    "Dr. GRPO": ("algorithm.name=dr_grpo",),
    "DAPO": ("algorithm.name=dapo",),
    # NFT with Dr. GRPO's reduction: which of the two, objective or reduction, makes a difference?
    "NFT constant": ("algorithm.name=nft", "algorithm.reduction=constant"),
}
LEARNING_RATES = {1: 4e-5, 4: 1.5e-5, 16: 6e-6}
"""Updates per rollout batch -> learning rate, the same for all methods: smaller where there are more updates."""


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    method: str
    updates: int
    seed: int

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
    return [Cell(m, u, s) for s in range(1, seeds + 1) for u in LEARNING_RATES for m in METHODS]
