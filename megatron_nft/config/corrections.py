"""The table of corrections for the gap from the engine that sampled to the actor that trains: what `algorithm.
corrections` may name, what each name takes, and what it leaves of the denominator.

Loads nothing heavy: AlgorithmConfig reads names and bounds here, nft/corrections.py has their functions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Bounds = float | tuple[float, float]
"""One number, or a band's lower and upper end."""


@dataclass(frozen=True, kw_only=True)
class CorrectionRow:
    """One of them. The ratio is actor's / engine's probability before the update, of what `of` says."""

    of: Literal["token", "sequence", "geometric"]
    """A token; an answer, the product of its tokens' ratios; or their geometric mean. The latter two weigh each of the
    answer's tokens alike."""
    kind: Literal["truncate", "mask", "k1", "k3"]
    """"truncate": the loss times min(ratio, bound). "mask": times the ratio within the band, and 0 outside. "k1", "k3":
    what has an estimate of the divergence above the bound is left out; an answer's is the mean over its tokens."""

    @property
    def rejects(self) -> bool:
        """What it removes leaves the denominator, as if it had not been sampled. A mask's zeros stay in it: they are
        values of the weight, as a cap's are."""
        return self.kind in ("k1", "k3")

    @property
    def takes(self) -> str:
        """Its bounds, in words."""
        if self.kind == "mask":
            return "a band, [lower, upper] with 0 <= lower < upper"
        return "one number above 0"

    def fits(self, bounds: Bounds) -> bool:
        """Whether these are bounds of it."""
        if self.kind == "mask":
            return isinstance(bounds, tuple) and 0 <= bounds[0] < bounds[1]
        return not isinstance(bounds, tuple) and bounds > 0

    def loses_one(self, bounds: Bounds) -> bool:
        """Whether a token on which engine and actor agree, of ratio 1, would weigh less."""
        if self.kind == "mask":
            return isinstance(bounds, tuple) and not bounds[0] <= 1 <= bounds[1]
        return self.kind == "truncate" and not isinstance(bounds, tuple) and bounds < 1


CORRECTIONS: dict[str, CorrectionRow] = {
    "token_truncate": CorrectionRow(of="token", kind="truncate"),
    "token_mask": CorrectionRow(of="token", kind="mask"),
    "token_k1": CorrectionRow(of="token", kind="k1"),
    "token_k3": CorrectionRow(of="token", kind="k3"),
    "sequence_truncate": CorrectionRow(of="sequence", kind="truncate"),
    "sequence_mask": CorrectionRow(of="sequence", kind="mask"),
    "sequence_k1": CorrectionRow(of="sequence", kind="k1"),
    "sequence_k3": CorrectionRow(of="sequence", kind="k3"),
    "geometric_truncate": CorrectionRow(of="geometric", kind="truncate"),
    "geometric_mask": CorrectionRow(of="geometric", kind="mask"),
}

_LOSES_ONE = "leaves out a ratio of 1, that of tokens on which engine and actor agree: it would weigh nearly all down"


def correction_problems(corrections: Mapping[str, Bounds], importance_cap: float) -> Iterator[str]:
    """What is wrong with a recipe's corrections."""
    for name, bounds in corrections.items():
        if name not in CORRECTIONS:
            yield f"algorithm.corrections.{name}: no such correction; choose from {', '.join(CORRECTIONS)}"
        elif not CORRECTIONS[name].fits(bounds):
            given = list(bounds) if isinstance(bounds, tuple) else bounds
            yield f"algorithm.corrections.{name} = {given}: it takes {CORRECTIONS[name].takes}"
        elif CORRECTIONS[name].loses_one(bounds):
            given, remedy = (list(bounds), "[0.5, 2.0]") if isinstance(bounds, tuple) else (bounds, "2.0")
            yield f"algorithm.corrections.{name} = {given} {_LOSES_ONE}; give bounds around it, such as {remedy}"
    if 0 < importance_cap < 1:
        yield f"algorithm.importance_cap = {importance_cap:g} {_LOSES_ONE}; give 1 or more, such as 2"
    weights = [name for name in corrections if name in CORRECTIONS and not CORRECTIONS[name].rejects]
    weights += [f"importance_cap = {importance_cap:g}"] * (importance_cap > 0)
    if len(weights) > 1:
        yield (
            f"algorithm: {' and '.join(weights)} would each weigh a token by its likelihood ratio, which is then "
            "corrected for twice; keep one of them (those that end in k1 or k3 go with any)"
        )
