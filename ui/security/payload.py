"""What a request must not hold, whoever sends it: nothing of ours sends or could store it."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64  # of lists and objects inside each other; the pages send five
MAX_VALUES = 20_000  # the largest a page sends is a selection of runs
MAX_TOKEN_IDS = 300_000  # of a prompt for `/v1/completions`
MAX_INTEGER = 2**63 - 1  # integer a database can hold
TOO_DEEP = f"Lists and objects may be nested {MAX_DEPTH} deep."
# A text, also one that does not end: each byte is read once, whatever is sent.
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and half of a pair of surrogates


def json_problem(body: bytes, values: int = MAX_VALUES) -> str:
    """Why a body of at most so many `values` is refused; "" if it is fine."""
    if body.count(b",") >= values and TEXT.sub(b"", body).count(b",") >= values:
        return f"It holds more than {values:,} values."
    try:
        return _value_problem(json.loads(body))
    except RecursionError:
        return TOO_DEEP
    except ValueError as error:
        return f"It is no valid JSON: {error}."


def _value_problem(value: Any) -> str:
    level, values = 0, [value]
    while values:
        level += 1
        if level > MAX_DEPTH:
            return TOO_DEEP
        if problem := next(filter(None, map(_leaf_problem, values)), ""):
            return problem
        values = [inner for each in values for inner in _inside(each)]
    return ""


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _leaf_problem(value: Any) -> str:
    if isinstance(value, str) and UNSTORABLE.search(value):
        return "It holds a character that cannot be stored, such as NUL."
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "It holds a number that is too large."
    if isinstance(value, float) and not math.isfinite(value):
        return "It holds a number that is not finite."
    return ""
