r"""Intervals, unions, inequalities and sets of numbers as sets: x > 5 is (5, \infty), x < -1 or x > 3 a union.

Nodes of structure.py come in, sympy sets go out; `same_sets` compares them. Called by same.py.
"""

from typing import Any

from megatron_nft.verdict import formula
from megatron_nft.verdict.formula import Unreadable
from megatron_nft.verdict.quantity import read_quantity
from megatron_nft.verdict.structure import Chain, Leaf, Many, Node, Union, Word, is_name

INTERVALS = {"(": (True, True), "[]": (False, False), "[)": (False, True), "(]": (True, False)}
"""Brackets -> open on the left, on the right."""
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


class NoSet(Exception):
    """The node describes no set of numbers that is read here."""


def as_set(node: Node) -> Any:
    """(letter or None, sympy's Set), or the node itself where it is no set."""
    try:
        return _set(node)
    except NoSet:
        return node


def same_sets(gold: Any, answer: Any) -> bool:
    """Whether two sets, of `as_set`, have the same elements; a set without a letter is of any."""
    if not isinstance(gold, tuple) or not isinstance(answer, tuple):
        return _same_relations(gold, answer)
    (one_letter, one), (other_letter, other) = gold, answer
    if one_letter is not None and other_letter is not None and one_letter != other_letter:
        return False
    return _same(one, other)


def _same(one: Any, other: Any) -> bool:
    import sympy

    if one == other:
        return True
    # Not symmetric_difference: sympy 1.14's is empty for (1, 2) and (-oo, 2).
    if one - other is sympy.S.EmptySet and other - one is sympy.S.EmptySet:
        return True
    parts, its_parts = (s.args if isinstance(s, sympy.Union) else (s,) for s in (one, other))
    if len(parts) != len(its_parts):
        return False
    return all(_same_part(a, b) for a, b in zip(parts, its_parts, strict=True))


def _same_part(one: Any, other: Any) -> bool:
    """sympy orders a union's parts; ends are compared as numbers, which sympy may not simplify."""
    import sympy

    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        is_open = (one.left_open, one.right_open) == (other.left_open, other.right_open)
        return is_open and formula.same_value(one.start, other.start) and formula.same_value(one.end, other.end)
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet) and len(one) == len(other):
        return all(formula.same_value(a, b) for a, b in zip(one.args, other.args, strict=True))
    return False


def _same_relations(gold: Any, answer: Any) -> bool:
    """Inequalities that describe no set of one letter: sympy's, by math-verify."""
    if not isinstance(gold, Chain) or not isinstance(answer, Chain) or gold.is_equation or answer.is_equation:
        return False
    if len(gold.sides) == len(answer.sides) == 2:
        flips = (answer, Chain(answer.sides[::-1], tuple(_FLIPPED.get(r, r) for r in answer.relations)))
        for one in flips:
            if one.relations == gold.relations and all(isinstance(s, Leaf) for s in (*gold.sides, *one.sides)):
                left, right, its_left, its_right = (formula.parse(s.text) for s in (*gold.sides, *one.sides))
                if formula.same_value(left - right, its_left - its_right):
                    return True
        return False
    return gold.relations == answer.relations and all(
        isinstance(a, Leaf) and isinstance(b, Leaf) and formula.same_value(formula.parse(a.text), formula.parse(b.text))
        for a, b in zip(gold.sides, answer.sides, strict=True)
    )


def _set(node: Node) -> tuple[str | None, Any]:
    import sympy

    if isinstance(node, Union):
        return _joined([_set(part) for part in node.parts])
    if isinstance(node, Many) and node.kind in INTERVALS and len(node.items) == 2:
        left_open, right_open = INTERVALS[node.kind]
        return None, sympy.Interval(*(_end(item) for item in node.items), left_open, right_open)
    if isinstance(node, Many) and node.kind in ("set", "list"):
        if any(isinstance(item, Chain | Many | Union) for item in node.items):
            parts = [_set(item) for item in node.items]
            letter, union = _joined(parts)
            if union == sympy.S.Reals and node.kind == "list":  # x >= 2 and x <= 5
                return letter, sympy.Intersection(*(part for _, part in parts))
            return letter, union
        return None, sympy.FiniteSet(*(_end(item) for item in node.items))
    if isinstance(node, Leaf) and r"\mathbb{R}" in node.text:
        if node.text.strip() == r"\mathbb{R}":
            return None, sympy.S.Reals
        if r"\setminus" in node.text:
            from megatron_nft.verdict.structure import read

            return None, sympy.S.Reals - _set(read(node.text.split(r"\setminus")[1]))[1]
    if isinstance(node, Chain):
        return _described(node)
    if isinstance(node, Leaf):
        return None, sympy.FiniteSet(_end(node))
    raise NoSet


def _joined(sets: list[tuple[str | None, Any]]) -> tuple[str | None, Any]:
    import sympy

    letters = {letter for letter, _ in sets if letter is not None}
    if len(letters) > 1:
        raise NoSet
    return next(iter(letters), None), sympy.Union(*(one for _, one in sets))


def _described(chain: Chain) -> tuple[str | None, Any]:
    """0 < x <= 5, x > 5, x \\ne 3, x \\in (0, 5)."""
    import sympy

    names = [place for place, side in enumerate(chain.sides) if is_name(side)]
    if len(chain.sides) == 3 and 1 in names:
        names = [1]  # a < x < b
    if chain.relations == ("in",) and names[:1] == [0]:
        return chain.sides[0].text if isinstance(chain.sides[0], Leaf) else None, _set(chain.sides[1])[1]
    if len(names) == 0 and len(chain.sides) == 2:
        return _linear(chain)
    if len(names) != 1 or "in" in chain.relations or "~" in chain.relations:
        raise NoSet
    (place,) = names
    found = sympy.S.Reals
    for relation, right in zip(chain.relations[place:], chain.sides[place + 1 :], strict=True):
        found = sympy.Intersection(found, _half(relation, right))
    for relation, left in zip(chain.relations[:place], chain.sides[:place], strict=True):
        found = sympy.Intersection(found, _half(_FLIPPED.get(relation, relation), left))
    name = chain.sides[place]
    if isinstance(name, Leaf) and name.text.startswith("|"):  # |x| < 2 says it of x
        inner = name.text.strip("| ")
        mirrored = sympy.Intersection(found, sympy.Interval(0, sympy.oo))
        negative = sympy.imageset(sympy.Lambda(sympy.Dummy("t"), 0), sympy.FiniteSet(0))
        negative = _mirrored(mirrored)
        return inner, sympy.Union(mirrored, negative)
    return name.text if isinstance(name, Leaf | Word) else None, found


def _mirrored(one: Any) -> Any:
    import sympy

    parts = one.args if isinstance(one, sympy.Union) else (one,)
    mirrored = []
    for part in parts:
        if isinstance(part, sympy.Interval):
            mirrored.append(sympy.Interval(-part.end, -part.start, part.right_open, part.left_open))
        elif isinstance(part, sympy.FiniteSet):
            mirrored.append(sympy.FiniteSet(*(-item for item in part)))
        else:
            raise NoSet
    return sympy.Union(*mirrored)


def _half(relation: str, end: Node) -> Any:
    import sympy

    value = _end(end)
    if relation == "<":
        return sympy.Interval.open(-sympy.oo, value)
    if relation == "<=":
        return sympy.Interval(-sympy.oo, value)
    if relation == ">":
        return sympy.Interval.open(value, sympy.oo)
    if relation == ">=":
        return sympy.Interval(value, sympy.oo)
    if relation == "!=":
        return sympy.Union(sympy.Interval.open(-sympy.oo, value), sympy.Interval.open(value, sympy.oo))
    raise NoSet


def _linear(chain: Chain) -> tuple[str | None, Any]:
    """-x > -1, 2x < 4: one letter, solved by sympy."""
    import sympy

    left, right = (formula.parse(side.text) if isinstance(side, Leaf) else None for side in chain.sides)
    if left is None or right is None:
        raise NoSet
    letters = left.free_symbols | right.free_symbols
    if len(letters) != 1:
        raise NoSet
    relations = {"<": sympy.Lt, ">": sympy.Gt, "<=": sympy.Le, ">=": sympy.Ge, "!=": sympy.Ne}
    (letter,) = letters
    polynomial = sympy.Poly((left - right).doit(), letter) if (left - right).is_polynomial(letter) else None
    if polynomial is None or polynomial.degree() != 1:
        raise NoSet
    slope, offset = polynomial.all_coeffs()
    relation = chain.relations[0] if slope > 0 else _FLIPPED[chain.relations[0]]
    if relation not in relations:
        raise NoSet
    name = sympy.Symbol(str(letter))
    return str(name), _half_at(relation, -offset / slope)


def _half_at(relation: str, value: Any) -> Any:
    return _half(relation, Leaf(str(value.p) + "/" + str(value.q))) if value.is_Rational else _raise()


def _raise() -> Any:
    raise NoSet


def _end(node: Node) -> Any:
    if not isinstance(node, Leaf):
        raise NoSet
    parsed = formula.parse(read_quantity(node.text).value)
    if not getattr(parsed, "is_number", False) and not getattr(parsed, "is_Symbol", False):
        evaluated = parsed.doit() if hasattr(parsed, "doit") else None
        if evaluated is None:
            raise Unreadable(node.text)
        return evaluated
    return parsed.doit()
