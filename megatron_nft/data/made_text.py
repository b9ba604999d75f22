"""A value that was made text, by JSON or by Python's str (a CSV file of tables has such fields) -> the value again.

Called by rows.py and ground_truth.py.
"""

import ast
import io
import json
import tokenize
from decimal import Decimal
from itertools import pairwise
from typing import Any


def value_in(text: str) -> Any:
    """Fractions of JSON stay as they are written.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text, parse_float=Decimal)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        why = error
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise why from None
    if _has_texts_side_by_side(text):
        raise ValueError("a comma is missing between two texts")
    return value


def _has_texts_side_by_side(text: str) -> bool:
    """As numpy writes lists; Python takes them for one text: ['3' '4'] would be ['34']."""
    tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
    kinds = [token.type for token in tokens if token.type not in (tokenize.NL, tokenize.NEWLINE)]
    return (tokenize.STRING, tokenize.STRING) in pairwise(kinds)
