"""Graders of one's own: functions that a recipe names in verdict.modes, as "package.module:function".

judge.py sends prompt, answer, ground truth and extra_info to a worker of the pool, where `judge_own` calls the function
and makes a Verdict of what it returns. The pool holds the deadline and the memory limit; nothing is imported elsewhere.
"""

import functools
import importlib
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, get_args

import numpy as np

from megatron_nft.types import Verdict, VerdictKind
from megatron_nft.verdict.math_answer import shortened, warm_up

PARAMETERS = ("prompt", "answer", "ground_truth", "extra_info")
"""Given by name."""
ALLOWED = "a bool, a score from 0 to 1 or a Verdict"


class OwnGraderError(Exception):
    """A grader of one's own can't be used. The message gives reason and remedy."""


@functools.cache
def load(name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names. Its module is looked for in the working directory, too.

    Raises:
        OwnGraderError: no such function, or one that doesn't take PARAMETERS.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # python -m has it there, an installed command hasn't
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except MemoryError:
        raise OwnGraderError("importing it takes more memory than verdict.memory_gib; raise that") from None
    except BaseException as error:  # the module is a program: it may raise, or exit
        raise OwnGraderError(
            f"{_words(error)}; install it in this environment, or put the folder that it is in into PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function) or inspect.iscoroutinefunction(function):
        where = getattr(module, "__file__", None) or module_name
        raise OwnGraderError(f"{where} has no function {function_name} (async ones don't do); name one that it has")
    try:
        inspect.signature(function).bind(**dict.fromkeys(PARAMETERS))
    except ValueError:
        pass  # a builtin may not tell its parameters
    except TypeError as error:
        raise OwnGraderError(
            f"{function_name} can't be called with {', '.join(f'{p}=' for p in PARAMETERS)} ({error}); give it "
            "these parameters, or **others for those that it has no use for"
        ) from None
    return function


def prepare(names: Sequence[str]) -> None:
    """Runs in a new worker, under no deadline: an import may take longer than a verdict."""
    warm_up()
    for name in names:
        with suppress(OwnGraderError):  # judge_own says it
            load(name)


def loads(name: str) -> Verdict:
    """Runs in a worker: "right" if the grader can be used, or else "error" with the reason and the remedy."""
    try:
        load(name)
    except OwnGraderError as error:
        return Verdict(kind="error", detail=str(error))
    return Verdict(kind="right")


def judge_own(name: str, answer: str, gold: str, prompt: str, extra_info: dict[str, Any]) -> Verdict:
    """Runs in a worker: calls the grader `name`. What it raises is an "error" with its message."""
    try:
        result = load(name)(prompt=prompt, answer=answer, ground_truth=gold, extra_info=extra_info)
    except MemoryError:
        raise  # the pool's: this process is to be replaced
    except BaseException as error:  # no exception may travel: the driver would import its class, and SystemExit end it
        return Verdict(kind="error", detail=shortened(_words(error)))
    return _verdict_of(name, result)


def judge_own_batch(name: str, items: Sequence[tuple[str, str, str, dict[str, Any]]]) -> list[Verdict]:
    """Runs in a worker: calls a grader of batches (verdict.batches) with lists, and takes a list as long.

    Args:
        items: (answer, ground truth, prompt, extra_info) of each answer.
    """
    answers, golds, prompts, infos = (list(column) for column in zip(*items, strict=True))
    try:
        results = list(load(name)(prompt=prompts, answer=answers, ground_truth=golds, extra_info=infos))
        if len(results) != len(items):
            raise OwnGraderError(f"{name} returned {len(results)} results for {len(items)} answers")
    except MemoryError:
        raise
    except BaseException as error:
        return [Verdict(kind="error", detail=shortened(_words(error)))] * len(items)
    return [_verdict_of(name, result) for result in results]


def _verdict_of(name: str, result: Any) -> Verdict:
    if isinstance(result, bool | np.bool_):
        return Verdict(kind="right" if result else "wrong")
    if isinstance(result, numbers.Real) and 0 <= result <= 1:
        return Verdict(kind="right" if result == 1 else "wrong", detail=f"score {result:g}", score=float(result))
    if isinstance(result, Verdict) and result.kind in get_args(VerdictKind) and isinstance(result.detail, str):
        score = result.score
        if score is None or (isinstance(score, numbers.Real) and 0 <= score <= 1):
            kind, detail = str(result.kind), shortened(str(result.detail))
            return Verdict(kind=kind, detail=detail, score=None if score is None else float(score))
    returned = f"{type(result).__name__} {result!r:.60}"
    return Verdict(kind="error", detail=shortened(f"{name} returned the {returned}; allowed: {ALLOWED}"))


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
