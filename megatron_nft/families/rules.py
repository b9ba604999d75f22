"""One line of a family's table: a Megatron parameter, the HF tensors that make it, and how ranks share it. Data only.

Numbers come in from the family, which has a model's dimensions; names, shapes and owners go out. The tensors themselves
are cut and placed by weights/layouts.py. A rank's place is a list of axes, of which a rule knows those that it needs:
tensor-parallel ones, or for experts those of a grid of their own. No heavy imports.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

VOCAB_MULTIPLE = 64
"""Rows of the embedding are padded to a multiple of this times tp: whole tiles for the GPU's matrix kernels."""

Numbers = dict[str, int]
"""What stands for the names in braces of a rule: {"layer": 3}, counted from 0 over the whole model."""


class MappingError(KeyError):
    """A parameter that the family's table doesn't name."""


@dataclass(frozen=True)
class AxisPlace:
    """A rank's coordinate on one parallel axis, such as "tp"."""

    axis: str
    rank: int
    size: int


Place = tuple[AxisPlace, ...]
"""A rank's coordinates. An axis that isn't in it has one rank."""

DENSE = ("tp", "cp", "dp")
"""Axes on which a pipeline stage's ranks lie."""
EXPERTS = ("etp", "ep", "edp")
"""Axes on which the same ranks lie for a mixture's experts: tensor-parallel, expert-parallel, and replicas of both."""


def along(axis: str, size: int) -> tuple[Place, ...]:
    """The places of ranks that differ on one axis only."""
    return tuple((AxisPlace(axis, rank, size),) for rank in range(size))


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of the embedding over all ranks: the vocabulary, padded to whole tiles on each rank."""
    multiple = VOCAB_MULTIPLE * tp
    return -(-vocab_size // multiple) * multiple


# --- Layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How pieces, each of shape (rows, *rest), lie in a parameter, and how ranks share them.

    rows: of each piece. A piece is an HF tensor, or some rows of a fused one.
    axis: whose ranks share the parameter; None: each has it whole.
    dim: along which they cut it.
    groups: pieces are cut into so many groups, and the parameter has one group after the other, in each a share of
        every piece; a rank has whole groups. None: a group for each rank.
    is_vocabulary: rows of padding follow, `padded_vocab_size`.
    """

    rows: tuple[int, ...]
    rest: tuple[int, ...] = ()
    axis: str | None = None
    dim: int = 0
    groups: int | None = None
    is_vocabulary: bool = False

    def share(self, place: Place) -> tuple[int, int]:
        """Rank and size on the layout's axis."""
        return next(((p.rank, p.size) for p in place if p.axis == self.axis), (0, 1))

    def shard_shape(self, place: Place) -> tuple[int, ...]:
        """Of what one rank has."""
        size = self.share(place)[1]
        rows = padded_vocab_size(sum(self.rows), size) if self.is_vocabulary else sum(self.rows)
        shape = [rows, *self.rest]
        shape[self.dim] //= size
        return tuple(shape)


def whole(*shape: int) -> Layout:
    """A tensor that every rank has: a norm."""
    return Layout(rows=shape[:1], rest=shape[1:])


def rows(*rows: int, of: tuple[int, ...] = (), groups: int | None = None, axis: str = "tp") -> Layout:
    """Pieces with so many rows of shape `of`, cut by rows: what comes in is whole, what goes out is cut."""
    return Layout(rows=rows, rest=of, axis=axis, groups=groups)


def columns(rows: int, columns: int, *, axis: str = "tp") -> Layout:
    """A matrix cut by columns: what comes in is cut."""
    return Layout(rows=(rows,), rest=(columns,), axis=axis, dim=1)


def vocabulary(rows: int, columns: int) -> Layout:
    """A row a token, cut by rows and padded."""
    return Layout(rows=(rows,), rest=(columns,), axis="tp", is_vocabulary=True)


# --- Rules -----------------------------------------------------------------------------------------------------------

LOCAL, TRANSFORMER_ENGINE = "local", "fused"
"""Kinds of Megatron's layers: its local ones, and TransformerEngine's, which have norms inside the linears behind them.
Checkpoints have the names of the second."""


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Args:
        megatron: the parameter. `{layer}` stands for the layer's number, counted from 0 over the whole model.
        hf: the tensors that make it: one for each piece of the layout, or one that holds all, one after the other.
        only_in: LOCAL or TRANSFORMER_ENGINE: the kind of layers that has it by this name; None: both.
        grid: axes on which the ranks lie that have it, whole or in part.
        layers: those that have it; None: all.
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    only_in: str | None = None
    grid: tuple[str, ...] = DENSE
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.hf) in (1, len(self.layout.rows)), f"{self.megatron}: one HF tensor, or one for each piece"

    @property
    def axes(self) -> tuple[str, ...]:
        """Over which it is sharded."""
        return () if self.layout.axis is None else (self.layout.axis,)

    @property
    def key(self) -> str:
        """Its name in a checkpoint, with `{layer}`."""
        return self.megatron

    def is_in(self, layer: int | None) -> bool:
        """Whether a layer has it."""
        return layer is None or self.layers is None or layer in self.layers

    def is_owned_at(self, place: Place) -> bool:
        """Whether a rank's shard is the one that is sent and exported.

        Of ranks with equal shards it is the one with coordinate 0 on every axis of the grid that the parameter isn't
        sharded over.
        """
        return all(p.rank == 0 for p in place if p.axis in self.grid and p.axis not in self.axes)

    def pieces(self, numbers: Numbers, place: Place = ()) -> list[tuple[str, int]]:
        """Of each piece: its HF tensor, and its first row in that."""
        names = [name.format(**numbers) for name in self.hf]
        if len(names) == len(self.layout.rows):
            return [(name, 0) for name in names]
        return [(names[0], sum(self.layout.rows[:piece])) for piece in range(len(self.layout.rows))]

    def hf_shapes(self, numbers: Numbers, place: Place = ()) -> dict[str, tuple[int, ...]]:
        """HF name -> shape of the tensors that a parameter at `place` makes, or has a part of."""
        shapes: dict[str, tuple[int, ...]] = {}
        for (name, first), count in zip(self.pieces(numbers, place), self.layout.rows, strict=True):
            shapes[name] = (first + count, *self.layout.rest)
        return shapes

    def num_elements(self, place: Place = ()) -> int:
        """Of one rank's shard, padding included."""
        return prod(self.layout.shard_shape(place))


@dataclass(frozen=True)
class ExpertRule(Rule):
    """A parameter of one expert.

    `{slot}` counts the experts of a rank, `{expert}` in the HF names those of the layer: each expert-parallel rank has
    the next experts / ep of them. In a checkpoint all experts of a layer stand under one key.
    """

    grid: tuple[str, ...] = EXPERTS
    num_experts: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        return ("ep", *super().axes)

    @property
    def key(self) -> str:
        name = self.megatron.replace(".local_experts.{slot}.", ".").replace("{slot}", "")
        return name.replace(".experts.", ".experts.experts.")

    def slots(self, ep: int) -> int:
        """Experts of one rank."""
        return self.num_experts // ep

    def pieces(self, numbers: Numbers, place: Place = ()) -> list[tuple[str, int]]:
        rank, size = next(((p.rank, p.size) for p in place if p.axis == "ep"), (0, 1))
        return super().pieces({**numbers, "expert": rank * self.slots(size) + numbers["slot"]}, place)


class Table:
    """The rules of one model, by Megatron name."""

    def __init__(self, model_type: str, rules: Sequence[Rule]) -> None:
        self.model_type, self.rules = model_type, tuple(rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def find(self, megatron_name: str) -> tuple[Rule, Numbers]:
        """The rule for a parameter (with its global layer number in the name), and the numbers in its name.

        Raises:
            MappingError: the table has no such parameter.
        """
        for pattern, rule in self._patterns:
            if match := pattern.fullmatch(megatron_name):
                numbers = {name: int(number) for name, number in match.groupdict().items()}
                if rule.is_in(numbers.get("layer")):
                    return rule, numbers
        raise MappingError(f"no rule for parameter {megatron_name!r} in the table of {self.model_type!r}")

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Rule]]:
        escaped = ((re.escape(rule.megatron), rule) for rule in self.rules)
        return [(re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", name)), rule) for name, rule in escaped]
