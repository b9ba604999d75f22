r"""What kind of thing an answer is: a list, a set, an interval, a pair, an equation, a word or a formula.

A text in the one notation (notation.py) comes in, a Node goes out. Only brackets, commas and signs of relation are read
here; what stands between them is a Leaf, which formula.py reads. Called by same.py.
"""

import functools
import re
from dataclasses import dataclass

from megatron_nft.verdict.notation import plain

RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
    r"\approx": "~",
    r"\equiv": "=",
}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_OPENING = {"(", "[", "{", r"\{", r"\langle", r"\begin", r"\lfloor", r"\lceil"}
_CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\end", r"\rfloor", r"\rceil"}
_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?)(?:matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{[pbBvV]?(?:matrix|array)\}", re.DOTALL
)
_FAMILY = re.compile(
    r"^(.*?)[,;]?\s*(?:\\text\{[^{}]*\}\s*)?\(?([a-zA-Z])\s*(?:\\in\s*\\mathbb\{?Z\}?\)?|\\text\{[^{}]*integers?[^{}]*\})$"
)
_PARAMETER = "q_{Z}"
_NAME = re.compile(
    r"^[|(]?(?:\\(?:angle|triangle|frac|overline|vec|max|min|text|mathbb|alpha|beta|gamma|theta|phi|lambda|mu|sigma|omega|rho|tau|"
    r"epsilon|delta|Delta|Omega|psi|chi|eta|hat|bar|tilde|overrightarrow|ell)|[A-Za-z'|,:\s(){}]|_\{[^{}]*\})+$"
)
WORD = re.compile(
    r"^(?:\\text\{[^{}]*\}|[^\W\d_]|[\s'.()]|(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})|\\(?:angle|triangle|odot|ldots)|(?<=[A-Z])\d|(?<=[A-Z])_\{[\w,]*\}|\d(?=[A-Z]))+$"
)


@dataclass(frozen=True)
class Leaf:
    """A formula."""

    text: str


@dataclass(frozen=True)
class Word:
    """A text that is no formula: a name, a choice, letters in a row. Equal as it stands or not at all."""

    text: str


@dataclass(frozen=True)
class Many:
    """Several things. `kind`: "list" (a, b), "set" ({a, b}; a or b), "(", "[" and other brackets, "ratio" (a : b)."""

    kind: str
    items: tuple["Node", ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of things."""

    rows: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True)
class Union:
    """Things joined by a cup."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Chain:
    """Sides with the relations between them: "x = 3", "0 < x <= 5"."""

    sides: tuple["Node", ...]
    relations: tuple[str, ...]

    @property
    def is_equation(self) -> bool:
        return set(self.relations) <= {"=", "~"}


Node = Leaf | Word | Many | Matrix | Union | Chain


@functools.lru_cache(maxsize=2048)
def read(latex: str) -> Node:
    """The structure of a formula in any notation."""
    text = plain(latex)
    if (family := _FAMILY.match(text)) and family[1].strip() and re.search(r"(?:=|\\in|,|\))", text):
        text = _with_parameter(family[1].strip(), family[2])
    return _read(text)


def with_parameter_of(gold: Node, answer: str) -> Node:
    r"""The answer; its parameter may have any name where the ground truth has one: \pi k for k\pi, k \in \mathbb{Z}."""
    node = read(answer)
    if _PARAMETER not in str(gold) or _PARAMETER in str(node):
        return node
    letters = set(re.findall(r"(?<![\\A-Za-z])[k-n](?![A-Za-z])", plain(answer)))
    return _read(_with_parameter(plain(answer), letters.pop())) if len(letters) == 1 else node


def _with_parameter(text: str, letter: str) -> str:
    r"""2k\pi with k in Z: the parameter is called the same in every answer."""
    return "".join(_PARAMETER if token == letter else token for token in _TOKEN.findall(text))


def _read(text: str) -> Node:
    text = text.strip()
    if len(choices := split(text, {r"\lor"})) > 1:
        return Many("set", tuple(item for choice in choices for item in _items(_read(choice))))
    if len(groups := split(text, {";"})) > 1:
        if all(len(split(group, {","})) > 1 for group in groups):
            return Many("list", tuple(Many("(", tuple(map(_read, split(group, {","})))) for group in groups))
        return Many("list", tuple(map(_read, groups)))
    if len(elements := split(text, {","})) > 1:
        items = tuple(item for element in elements for item in _items(_read(element)))
        return Many("list", items)
    return _read_element(text)


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Many) and node.kind in ("pm", "list") else (node,)


def _read_element(text: str) -> Node:
    sides, relations = _split_relations(text)
    if relations:
        return Chain(tuple(_read_element(side) if side else Leaf("") for side in sides), tuple(relations))
    if WORD.match(text) and not re.fullmatch(r"-?[A-Za-zπ]'*", text) and (is_text(text)):
        return Word(text)
    if len(parts := split(text, {r"\cup"})) > 1:
        return Union(tuple(map(_read_element, parts)))
    if r"\pm" in text:
        both = tuple(_read_element(text.replace(r"\pm", sign, 1).strip().removeprefix("+")) for sign in "+-")
        return Many("pm", tuple(item for node in both for item in _items(node)))
    if match := _MATRIX.fullmatch(text):
        return _read_matrix(match)
    if bracketed := _bracketed(text):
        return bracketed
    if len(parts := split(text, {":"})) > 1 and all(parts):
        return Many("ratio", tuple(map(_read_element, parts)))
    return Leaf(text)


def _bracketed(text: str) -> Node | None:
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or tokens[0] not in _OPENING or tokens[0] in (r"\begin", r"\lfloor", r"\lceil"):
        return None
    depth = 0
    for place, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and place < len(tokens) - 1:
            return None
    if depth or tokens[-1] not in _CLOSING:
        return None
    first, last = tokens[0].strip("\\"), tokens[-1].strip("\\")
    inside = "".join(tokens[1:-1]).strip()
    items = [item for group in split(inside, {";"}) for item in split(group, {","})]
    if first == "{" and tokens[0] != "{":
        condition = split(inside, {"|", ":"})
        if len(condition) == 2 and _split_relations(condition[1])[1]:
            return _read(condition[1] if not _split_relations(condition[0])[1] else inside.replace("|", ",", 1))
        return Many("set", tuple(item for node in map(_read, items) for item in _items(node)) if inside else ())
    if first == "{":
        return _read(inside) if len(items) == 1 else Many("set", tuple(map(_read, items)))
    if len(items) == 1:
        node = _read(inside)
        return node if first + last == "()" else None
    kind = "(" if first == "langle" else first + last if first + last != "()" else "("
    return Many(kind, tuple(map(_read, items)))


def _read_matrix(match: re.Match[str]) -> Node:
    rows = [
        row
        for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])", match[2])
        if row.strip() and row.strip() != r"\hline"
    ]
    cells = tuple(tuple(_read_element(cell.strip()) for cell in row.split("&")) for row in rows)
    if match[1] in ("v", "V"):
        return Leaf(match[0])  # a determinant
    if all(len(row) == 1 for row in cells) and len(cells) > 1:
        return Many("(", tuple(row[0] for row in cells))  # a column is a vector
    return Matrix(cells)


def is_text(text: str) -> bool:
    r"""Letters without a sign between them are text: ABC, \angle ABC, 1A2B, east. A single letter is a variable."""
    return len(re.findall(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}", "", text))) > 1 or r"\text" in text


def is_name(node: Node) -> bool:
    """What may stand before "=" without being part of the answer: x, f(x), AB, (p, q), the ratio of two of these."""
    if isinstance(node, Many):
        return all(is_name(item) for item in node.items)
    if not isinstance(node, Leaf | Word) or node.text in ("e", "i"):
        return False
    return bool(_NAME.match(node.text)) and not re.search(r"(?<![_{\w])\d", node.text)


def split(text: str, separators: set[str]) -> list[str]:
    """The parts between separators that stand in no bracket."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth = max(0, depth + (token in _OPENING) - (token in _CLOSING))
        if depth == 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _split_relations(text: str) -> tuple[list[str], list[str]]:
    sides, relations, depth = [""], [], 0
    for token in _TOKEN.findall(text):
        depth = max(0, depth + (token in _OPENING) - (token in _CLOSING))
        if depth == 0 and token in RELATIONS:
            relations.append(RELATIONS[token])
            sides.append("")
        else:
            sides[-1] += token
    return [side.strip() for side in sides], relations
