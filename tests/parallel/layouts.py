"""The layouts that tests/parallel/test_parity.py runs: a table, and what makes a layout possible.

The table has every way in which up to 4 processes can be laid out, and every pair of values of two columns that is
possible with them. A push runs ON_A_PUSH, fewer rows that have every pair, too. test_parity.py holds both to it.
"""

from collections.abc import Hashable, Iterator
from dataclasses import asdict, astuple, dataclass
from itertools import combinations, product

from tests.parallel.covering import covering

MAX_PROCESSES = 4
NUM_LAYERS = 4
"""Of the models that go through these layouts, at least: a layout of more stages has one a stage."""

TOKEN_BUDGETS = {"single": 1, "small": 60, "large": 4096}
"""actor.tokens_per_microbatch: every sequence in a microbatch of its own, a few packed into one, or all of a rank.
Packing and budget are one column: without packing there is no budget."""

OVERLAP_BUCKET_SIZE = 30_000
"""Parameters: several messages for a model of these tests."""

VALUES = {
    "tp": (1, 2, 4),
    "pp": (1, 2, 4),
    "vpp": (1, 2),
    "cp": (1, 2),
    "dp": (1, 2, 4),
    "sp": (0, 1),
    "recompute": ("none", "selective", "full"),
    "microbatch": tuple(TOKEN_BUDGETS),
    "embedding": ("tied", "untied"),
}


@dataclass(frozen=True)
class Layout:
    """A row of the table."""

    tp: int
    pp: int
    vpp: int
    cp: int
    dp: int
    sp: int
    recompute: str
    microbatch: str
    embedding: str
    last_stage: int | None = None
    """Layers of the last rank's stages, where the stages are uneven."""
    overlap: bool = False
    """Gradients are reduced during the backward, parameters gathered during the forward pass, in small messages."""

    @property
    def num_processes(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def num_layers(self) -> int:
        """Of the model that goes through it."""
        return max(NUM_LAYERS, self.pp * self.vpp)

    @property
    def is_possible(self) -> bool:
        """Sequence parallelism shards over the tensor axis, virtual stages interleave with those of other ranks."""
        return self.num_processes <= MAX_PROCESSES and (self.sp == 0 or self.tp > 1) and (self.vpp == 1 or self.pp > 1)

    @property
    def processes(self) -> tuple[int, ...]:
        """How the processes are laid out, whatever they run."""
        return astuple(self)[:6]

    @property
    def pairs(self) -> set[frozenset]:
        """Every two columns with their values."""
        items = [(name, getattr(self, name)) for name in VALUES]
        return {frozenset(pair) for pair in combinations(items, 2)}

    @property
    def overrides(self) -> list[str]:
        """For `load_config`."""
        lines = [f"actor.{axis}={getattr(self, axis)}" for axis in ("tp", "pp", "vpp", "cp", "dp")]
        lines += [f"actor.sequence_parallel={'true' if self.sp else 'false'}", f"actor.recompute={self.recompute}"]
        lines += [f"actor.tokens_per_microbatch={TOKEN_BUDGETS[self.microbatch]}"]
        if self.last_stage is not None:
            lines += [f"actor.num_layers_in_last_pipeline_stage={self.last_stage}"]
        if self.overlap:
            lines += ["actor.overlap_grad_reduce=true", "actor.overlap_param_gather=true"]
            lines += [f"actor.ddp_bucket_size={OVERLAP_BUCKET_SIZE}"]
        return lines

    def __str__(self) -> str:
        axes = [f"{k}{v}" for k, v in asdict(self).items() if k in ("tp", "pp", "vpp", "cp", "dp") and v > 1]
        special = ["uneven"] * (self.last_stage is not None) + ["overlap"] * self.overlap
        kind = [f"recompute-{self.recompute}", self.microbatch, self.embedding]
        return " ".join([*axes, *["sp"] * self.sp, *special, *kind])


def possible_layouts() -> Iterator[Layout]:
    """Every possible combination of VALUES."""
    for values in product(*VALUES.values()):
        if (layout := Layout(*values)).is_possible:
            yield layout


# fmt: off
LAYOUTS = [
    #  tp pp vpp cp dp sp  recompute   microbatch embedding
    Layout(1, 1, 1, 1, 1, 0, "none",      "large",  "tied"),
    Layout(2, 1, 1, 1, 1, 0, "selective", "single", "tied"),
    Layout(2, 1, 1, 1, 1, 1, "none",      "small",  "untied"),
    Layout(4, 1, 1, 1, 1, 0, "full",      "small",  "untied"),
    Layout(4, 1, 1, 1, 1, 1, "selective", "single", "tied"),
    Layout(4, 1, 1, 1, 1, 1, "none",      "large",  "untied"),
    Layout(1, 2, 1, 1, 1, 0, "none",      "small",  "untied"),
    Layout(1, 2, 2, 1, 1, 0, "full",      "single", "tied"),
    Layout(1, 4, 1, 1, 1, 0, "full",      "single", "untied"),
    Layout(1, 4, 1, 1, 1, 0, "none",      "large",  "tied"),
    Layout(1, 4, 2, 1, 1, 0, "selective", "small",  "tied"),
    Layout(1, 1, 1, 2, 1, 0, "none",      "large",  "tied"),
    Layout(1, 1, 1, 1, 2, 0, "selective", "small",  "tied"),
    Layout(1, 1, 1, 1, 4, 0, "none",      "small",  "tied"),
    Layout(1, 1, 1, 1, 4, 0, "full",      "single", "untied"),
    Layout(1, 1, 1, 1, 4, 0, "selective", "large",  "tied"),
    Layout(2, 2, 1, 1, 1, 0, "full",      "small",  "tied"),
    Layout(2, 2, 1, 1, 1, 1, "selective", "small",  "tied"),
    Layout(2, 2, 2, 1, 1, 0, "full",      "small",  "tied"),
    Layout(2, 2, 2, 1, 1, 1, "selective", "large",  "tied"),
    Layout(2, 1, 1, 2, 1, 0, "none",      "large",  "untied"),
    Layout(2, 1, 1, 2, 1, 1, "full",      "large",  "untied"),
    Layout(2, 1, 1, 1, 2, 0, "none",      "small",  "untied"),
    Layout(2, 1, 1, 1, 2, 1, "none",      "single", "tied"),
    Layout(1, 2, 1, 2, 1, 0, "selective", "single", "untied"),
    Layout(1, 2, 2, 2, 1, 0, "none",      "single", "tied"),
    Layout(1, 2, 1, 1, 2, 0, "selective", "large",  "tied", last_stage=1),
    Layout(1, 2, 2, 1, 2, 0, "full",      "single", "untied"),
    Layout(1, 1, 1, 2, 2, 0, "none",      "small",  "untied"),
    Layout(1, 1, 1, 1, 2, 0, "none",      "small",  "tied", overlap=True),
    Layout(2, 1, 1, 1, 2, 1, "full",      "small",  "untied", overlap=True),
    Layout(1, 2, 2, 1, 2, 0, "selective", "small",  "tied", overlap=True),
]
# fmt: on


def meets(layout: Layout) -> set[Hashable]:
    """What a layout is in the table for: its pairs of values, and whether it is uneven, or overlaps."""
    return layout.pairs | {("uneven", layout.last_stage is not None), ("overlap", layout.overlap)}


ON_A_PUSH = covering(LAYOUTS, meets)
