r"""Whether an answer is what the ground truth is: two structures come in, True or False and the deciding rules go out.

One function a kind of thing. Called by math_answer.py, in a worker.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from megatron_nft.verdict import formula
from megatron_nft.verdict.final import is_literal
from megatron_nft.verdict.intervals import as_set, same_sets
from megatron_nft.verdict.quantity import read_quantity
from megatron_nft.verdict.same_values import Comparison, same_quantities
from megatron_nft.verdict.structure import Chain, Leaf, Many, Matrix, Node, Union, Word, is_name

NO_SOLUTION = {
    "nosolution",
    "nosolutions",
    "none",
    "emptyset",
    "theemptyset",
    "norealsolution",
    "norealsolutions",
    "null",
    "∅",
}


def same(gold: Node, answer: Node, comparison: Comparison) -> bool:
    """Whether the answer is the ground truth, in another notation or not.

    Raises:
        Unreadable: one of the formulas can't be read.
    """
    if gold == answer:
        return True
    if isinstance(gold, Many) and gold.kind == "pm":
        gold = Many("set", gold.items)
    if isinstance(answer, Many) and answer.kind == "pm":
        answer = Many("set", answer.items)
    if isinstance(gold, Chain) or isinstance(answer, Chain):
        return _same_chains(gold, answer, comparison)
    if _is_empty(gold) or _is_empty(answer):
        return _is_empty(gold) and _is_empty(answer)
    if isinstance(gold, Word) or isinstance(answer, Word):
        return _same_words(gold, answer, comparison)
    if isinstance(gold, Union) or isinstance(answer, Union):
        return same_sets(as_set(gold), as_set(answer))
    if isinstance(gold, Many) or isinstance(answer, Many):
        return _same_many(gold, answer, comparison)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _same_matrices(gold, answer, comparison)
    return same_quantities(gold.text, answer.text, comparison)


def _is_empty(node: Node) -> bool:
    if isinstance(node, Many):
        return node.kind == "set" and not node.items
    text = re.sub(r"\\text|[^a-z]", "", node.text.lower()) if isinstance(node, Leaf | Word) else ""
    return text in NO_SOLUTION


def letters_of(node: Leaf | Word) -> str:
    """A word without what only sets it: spaces, \\text{} and brackets around it."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", node.text)
    text = re.sub(r"[\s.\"'!?]", "", text)
    return text[1:-1] if re.fullmatch(r"\([^()]*\)", text) else text


def _same_words(gold: Node, answer: Node, comparison: Comparison) -> bool:
    """Letters in their order. Words of three letters and more may begin with a capital, or not."""
    if not isinstance(gold, Leaf | Word) or not isinstance(answer, Leaf | Word):
        return False
    one, other = letters_of(gold), letters_of(answer)
    if one == other:
        return True
    is_prose = r"\text" in gold.text or r"\text" in answer.text or " " in gold.text.strip() or one[1:].islower()
    if is_prose and len(one) >= 3 and one.casefold() == other.casefold():
        return True
    if isinstance(gold, Leaf) != isinstance(answer, Leaf) and r"\text" not in gold.text + answer.text:
        return same_quantities(gold.text, answer.text, comparison)  # xy for y \cdot x
    return False


def _same_many(gold: Node, answer: Node, comparison: Comparison) -> bool:
    """Lists and pairs in their order, sets in any, with as many elements of each."""
    if not isinstance(gold, Many):
        return (
            isinstance(gold, Leaf)
            and isinstance(answer, Many)
            and len(answer.items) == 1
            and same(gold, answer.items[0], comparison)
        )
    if not isinstance(answer, Many):
        return gold.kind == "set" and len(gold.items) == 1 and same(gold.items[0], answer, comparison)
    if any(isinstance(item, Chain) and not item.is_equation for item in (*gold.items, *answer.items)):
        return same_sets(as_set(gold), as_set(answer))
    kinds = {gold.kind, answer.kind}
    if len(gold.items) != len(answer.items) and not (kinds <= {"list", "set"} and _is_free(gold, comparison)):
        return False
    if "ratio" in kinds:
        return kinds == {"ratio"} and _same_ratios(gold.items, answer.items, comparison)
    if kinds == {"set"} or ("set" in kinds and _is_free(gold, comparison)):
        return _in_any_order(gold.items, answer.items, comparison)
    if kinds == {"list"}:
        return _in_order(gold.items, answer.items, comparison) or (
            _is_free(gold, comparison) and _in_any_order(gold.items, answer.items, comparison)
        )
    if kinds <= {"list", "set", "("} or gold.kind == answer.kind:
        return _in_order(gold.items, answer.items, comparison)
    return False


def _is_free(gold: Many, comparison: Comparison) -> bool:
    """Whether a list has no order: the question asks for all solutions, or they are pairs, or named."""
    return (
        comparison.in_any_order or gold.kind == "set" or not all(isinstance(item, Leaf | Word) for item in gold.items)
    )


def _in_order(golds: Sequence[Node], answers: Sequence[Node], comparison: Comparison) -> bool:
    return len(golds) == len(answers) and all(map(lambda gold, answer: same(gold, answer, comparison), golds, answers))


def _in_any_order(golds: Sequence[Node], answers: Sequence[Node], comparison: Comparison) -> bool:
    if all(isinstance(gold, Many) for gold in golds):
        golds, answers = list(dict.fromkeys(golds)), list(dict.fromkeys(answers))  # a set of pairs
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        place = next((i for i, answer in enumerate(left) if same(gold, answer, comparison)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_ratios(golds: Sequence[Node], answers: Sequence[Node], comparison: Comparison) -> bool:
    """2 : 3 is 4 : 6; 12:00 is not 1:00."""
    if _in_order(golds, answers, comparison):
        return True
    numbers = [_number(node) for node in (*golds, *answers)]
    if any(not number for number in numbers):
        return False
    return len({Fraction(a, g) for g, a in zip(numbers[: len(golds)], numbers[len(golds) :], strict=True)}) == 1


def _number(node: Node) -> Fraction | None:
    return formula.rational(formula.parse(node.text)) if isinstance(node, Leaf) and is_literal(node.text) else None


def _same_matrices(gold: Node, answer: Node, comparison: Comparison) -> bool:
    one = gold.rows if isinstance(gold, Matrix) else None
    other = answer.rows if isinstance(answer, Matrix) else None
    if one is None or other is None:  # a row of numbers may be written as a tuple
        rows, many = (one, answer) if one is not None else (other, gold)
        if rows is None or len(rows) != 1 or not isinstance(many, Many):
            return False
        row = Many("(", rows[0])
        return _same_many(row, many, comparison) if one is not None else _same_many(many, row, comparison)
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    return all(_in_order(row, its, comparison) for row, its in zip(one, other, strict=True))


def _same_chains(gold: Node, answer: Node, comparison: Comparison) -> bool:
    """Equations by the side that the ground truth has; inequalities as the sets that they describe."""
    gold_chain = gold if isinstance(gold, Chain) and gold.is_equation else None
    answer_chain = answer if isinstance(answer, Chain) and answer.is_equation else None
    if (isinstance(gold, Chain) and not gold_chain) or (isinstance(answer, Chain) and not answer_chain):
        return same_sets(as_set(gold), as_set(answer))
    if gold_chain and answer_chain:
        one, other = gold_chain.sides[0], answer_chain.sides[0]
        if is_name(one) and is_name(other):
            return _same_names(one, other) and _says(answer_chain, gold_chain.sides[-1], comparison)
        return _same_equations(gold_chain, answer_chain)
    if answer_chain:
        return _says(answer_chain, gold, comparison)
    name, value = gold_chain.sides[0], gold_chain.sides[-1]
    if not is_name(name) or (isinstance(name, Word) and isinstance(value, Word)):  # "x + y = 3", "SRMC = LRMC"
        return False
    return same(value, answer, comparison)


def _says(chain: Chain, gold: Node, comparison: Comparison) -> bool:
    """x = 1/2 = 0.5 says 0.5: all sides behind the name do. What stands behind an approximate sign is not looked at."""
    sides = list(chain.sides)
    approximate = next((i for i, relation in enumerate(chain.relations) if relation == "~"), None)
    if approximate is not None and not (approximate == 0 and (is_name(sides[0]) or sides[0] == Leaf(""))):
        sides = sides[: approximate + 1]
    if len(sides) > 1 and (is_name(sides[0]) or sides[0] == Leaf("") or _has_letters(sides[0])):
        sides = sides[1:]
    if not same(gold, sides[-1], comparison):
        return False
    return all(_is_value(gold, side) for side in sides[:-1])


def _has_letters(node: Node) -> bool:
    return isinstance(node, Leaf) and bool(re.search(r"(?<![\\A-Za-z])[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", node.text)))


def _is_value(gold: Node, side: Node) -> bool:
    """A side on the way to the last one: it may be unevaluated, but not another number."""
    if not isinstance(gold, Leaf) or not isinstance(side, Leaf):
        return is_name(side) or same(gold, side, Comparison())
    if is_name(side):
        return True
    gold_value, value = (formula.parse(read_quantity(node.text).value) for node in (gold, side))
    return formula.same_value(gold_value, value)


def _same_names(one: Node, other: Node) -> bool:
    """x is not y; but f(x) = ... may be written as y = ..."""
    texts = [re.sub(r"[\s{}]|\\text", "", getattr(node, "text", str(node))) for node in (one, other)]
    if texts[0] == texts[1] or str(one) == str(other):
        return True
    is_function = [bool(re.fullmatch(r"[a-zA-Z]\([a-z]\)", text)) for text in texts]
    return (is_function[0] and texts[1] == "y") or (is_function[1] and texts[0] == "y")


def _same_equations(gold: Chain, answer: Chain) -> bool:
    """Two equations say the same if what they set to zero is the same, up to a factor."""
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    if not all(isinstance(side, Leaf | Word) for side in (*gold.sides, *answer.sides)):
        return False
    left, right, its_left, its_right = (formula.parse(side.text) for side in (*gold.sides, *answer.sides))
    try:
        one, other = left - right, its_left - its_right
    except TypeError:
        return False
    return formula.are_proportional(one, other)
