"""NFT and its baselines from one base model: trains every cell of the study, then writes its table and curves.

    python -m benchmarks.algorithms.run --out runs/algorithms            (95 runs, hours on two cores)

Resumable (../lanes.py): a finished cell is kept, and the page is made of what is there.
"""

from typing import Any

from benchmarks.algorithms.cells import Cell, all_cells
from benchmarks.algorithms.page import write_page
from benchmarks.lanes import Study


def kept(cell: Cell, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page wants to know of a cell besides its curve."""
    return {
        "method": cell.method,
        "updates": cell.updates,
        "seed": cell.seed,
        "correct_rate": [r["nft/correct_rate"] for r in steps],
        "ratio_max": max(r["nft/ratio_max"] for r in steps),
        "held": [r.get("nft/clipped_fraction", r.get("nft/clamped_fraction")) for r in steps],
    }


STUDY = Study("benchmarks.algorithms.run", "runs/algorithms", all_cells, kept, write_page)

if __name__ == "__main__":
    STUDY.main(__doc__)
