r"""Where the answer stands in a text: behind the thought, in the last \boxed{...}.

Texts come in, the answer's text or None goes out, in linear time and from the end: a text of 45,000 characters is not
read whole for a box in its last line. Called in workers, and for ground truths.
"""

import re

# One alternative a token, tried in this order: a box's opening, an escaped character (\{ is no brace), a brace. Models
# also write "\\boxed"; the bound on the backslashes keeps the scan linear on degenerate texts.
_TOKEN = re.compile(r"\\{1,3}f?box(?:ed)?\s*\{|\\.|[{}]", re.DOTALL)
_IS_BOX = re.compile(r"\\{1,3}(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\boxed\s+(-?\\?[A-Za-z0-9][A-Za-z0-9.,/]*)")
FIRST_WINDOW = 2048

THINK_START, THINK_END = "<think>", "</think>"
UNFINISHED = "the thought is not finished: no </think>"


def last_boxed(text: str) -> str | None:
    r"""Contents of the last \boxed{...} or \fbox{...} whose braces balance, stripped; None without one.

    A window at the text's end grows twofold until it holds one: pairs of braces within it are pairs of the whole text.
    """
    if "box" not in text:
        return None
    window = FIRST_WINDOW
    while True:
        start = max(0, len(text) - window)
        while start and text[start - 1] == "\\":
            start -= 1  # not within an escape
        boxes = _boxes(text[start:])
        if boxes:
            return boxes[-1][1]
        if start == 0:
            bare = _BARE_BOX.findall(text)
            return bare[-1].rstrip(".,") if bare else None
        window *= 2


def all_boxed(text: str) -> list[str]:
    """Contents of all boxes that stand in no other, in their order: a ground truth may have several."""
    found, end = [], 0
    for start, contents, its_end in sorted((s, c, e) for s, c, e in _boxes(text)):
        if start >= end:
            found.append(last_boxed(contents) or contents)
            end = its_end
    return list(dict.fromkeys(found))


def _boxes(text: str) -> list[tuple[int, str, int]]:
    """(where the contents start, contents, where they end) of all balanced boxes, the last to start at the end."""
    open_braces: list[tuple[int, bool]] = []  # (where the contents start, is it a box)
    found: list[tuple[int, int]] = []
    for token in _TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            open_braces.append((token.end(), bool(_IS_BOX.fullmatch(token[0]))))
        elif token[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box:
                found.append((start, token.start()))
    if len(found) > 50:  # degenerate: only the last counts, and copies of nested ones would be quadratic
        found = [max(found)]
    return [(start, _stripped(text[start:end]), end) for start, end in sorted(found)]


def _stripped(contents: str) -> str:
    """Without spaces around, but for the one that a backslash makes a space of: "5\\ "."""
    stripped = contents.strip()
    return stripped + " " if stripped.endswith("\\") and not stripped.endswith("\\\\") else stripped


def behind_thought(text: str, prompt_opens: bool = False) -> str | None:
    """What stands behind the last </think>; None where a thought is not finished; the text where there is none.

    Args:
        prompt_opens: the prompt's last word is <think>, as some chat templates have it.
    """
    _, mark, answer = text.rpartition(THINK_END)
    if mark:
        return None if THINK_START in answer else answer
    return None if prompt_opens or THINK_START in text else text
