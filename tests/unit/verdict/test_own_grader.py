"""Graders of one's own in the real pool: what they get, what they may return, and every way in which they can fail."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_nft.config import RecipeError, VerdictConfig
from megatron_nft.types import Prompt, Rollout, RolloutGroup
from megatron_nft.verdict.check import check_own_graders, own_graders
from megatron_nft.verdict.judge import Judge

DEADLINE_S, MEMORY_GIB = 2.0, 1.0
README = Path("megatron_nft/verdict/README.md")
MODULE = r'''
import os
import sys
import time

from megatron_nft.types import Verdict


class Private(Exception):
    """One that the driver can't make again."""

    def __init__(self, one, two):
        super().__init__(one + two)


def same(prompt, answer, ground_truth, extra_info):
    return answer == ground_truth

def share(answer, ground_truth, **others):
    return sum(a == b for a, b in zip(answer, ground_truth)) / len(ground_truth)

def asked(prompt, answer, ground_truth, extra_info):
    return Verdict(kind="right", detail=f"{prompt} {answer} {ground_truth} {extra_info}", score=0.5)

def echo(answer, **others):
    return eval(answer)

def fail(answer, **others):
    raise Private("no verdict on ", answer)

def leave(**others):
    sys.exit("I'm off")

def hang(**others):
    while True:
        pass

def hog(answer, **others):
    return len("x" * (4 << 30)) == answer

def crash(**others):
    os._exit(3)

def crash_as_if_worn(**others):
    os._exit(75)

calls = 0

def count(**others):
    global calls
    calls += 1
    return Verdict(kind="right", detail=f"{calls}")

def two(answer, gold):
    return True

async def later(**others):
    return True

number = 1
'''


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """A folder of modules, importable as an installed package is."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "shop").mkdir()
    (folder / "shop/grading.py").write_text(MODULE)
    (folder / "shop/broken.py").write_text("import a_package_that_is_not_there")
    (folder / "shop/leaving.py").write_text("raise SystemExit('not today')")
    (folder / "shop/sleeping.py").write_text("import time\ntime.sleep(60)")
    (folder / "shop/large.py").write_text("x = 'x' * (4 << 30)")
    (folder / "shop/slow.py").write_text(f"import time\ntime.sleep({DEADLINE_S + 0.5})\n{MODULE}")
    readme = re.search(r"```python\n(# grading.py\n.*?)```", README.read_text(), re.DOTALL)
    (folder / "grading.py").write_text(readme[1])
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def judge():
    names = ["same", "share", "asked", "echo", "fail", "leave", "hang", "hog", "crash", "count"]
    modes = {name: f"shop.grading:{name}" for name in names} | {"slow": "shop.slow:same", "words": "grading:words"}
    with Judge(VerdictConfig(workers=2, deadline_s=DEADLINE_S, memory_gib=MEMORY_GIB, modes=modes)) as judge:
        judge.warm_up()
        yield judge


def prompt_of(source: str, gold: str = "", text: str = "?", **extra_info) -> Prompt:
    token_ids_P = np.zeros(1, np.int32)
    return Prompt(
        prompt_id=f"{source}/0",
        text=text,
        token_ids_P=token_ids_P,
        ground_truth=gold,
        data_source=source,
        extra_info=extra_info,
    )


def verdicts_of(judge, prompt, *answers):
    rollouts = tuple(
        Rollout(
            text=answer,
            token_ids_A=np.zeros(1, np.int32),
            engine_logprobs_A=np.zeros(1, np.float32),
            truncated=False,
            policy_version=0,
        )
        for answer in answers
    )
    (group,) = judge.judge([RolloutGroup(prompt=prompt, rollouts=rollouts)])
    return group.verdicts


def seen(verdicts):
    return [(verdict.kind, verdict.score) for verdict in verdicts]


def test_true_is_right_and_false_is_wrong(judge):
    assert seen(verdicts_of(judge, prompt_of("same", "a b"), "a b", "b", "")) == [
        ("right", None),
        ("wrong", None),
        ("wrong", None),
    ]


def test_a_score_is_kept_and_right_if_it_is_one(judge):
    verdicts = verdicts_of(judge, prompt_of("share", "abcd"), "abcd", "abzz", "zzzz")
    assert seen(verdicts) == [("right", 1.0), ("wrong", 0.5), ("wrong", 0.0)]
    assert [verdict.detail for verdict in verdicts] == ["score 1", "score 0.5", "score 0"]


def test_it_gets_prompt_answer_ground_truth_and_extra_info(judge):
    (verdict,) = verdicts_of(judge, prompt_of("asked", "4", "2+2=", tests=[{"in": 1}], limit=None), r"so \boxed{4}")
    assert verdict.detail == r"2+2= so \boxed{4} 4 {'tests': [{'in': 1}], 'limit': None}"
    assert (verdict.kind, verdict.score) == ("right", 0.5)
    (verdict,) = judge.judge_answers(["4"], ["5"], ["asked"])
    assert verdict.detail == " 4 5 {}"


@pytest.mark.parametrize(
    ("returned", "kind", "score"),
    [
        ("True", "right", None),
        ("__import__('numpy').bool_(False)", "wrong", None),
        ("__import__('numpy').float32(0.25)", "wrong", 0.25),
        ("1", "right", 1.0),
        ("0", "wrong", 0.0),
        ("Verdict(kind='timeout', detail='the server')", "timeout", None),
        ("Verdict(kind='wrong', score=1)", "wrong", 1.0),
    ],
)
def test_what_it_may_return(judge, returned, kind, score):
    assert seen(verdicts_of(judge, prompt_of("echo"), returned)) == [(kind, score)]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("None", "NoneType None"),
        ("'right'", "str 'right'"),
        ("1.5", "float 1.5"),
        ("-0.1", "float -0.1"),
        ("float('nan')", "float nan"),
        ("(True, 'yes')", "tuple (True, 'yes')"),
        ("Private('a', 'b')", "Private Private('ab')"),
        ("Verdict(kind='correct')", "Verdict Verdict(kind='correct'"),
        ("Verdict(kind='right', score=2)", "Verdict Verdict(kind='right'"),
        ("Verdict(kind='right', detail=7)", "Verdict Verdict(kind='right'"),
    ],
)
def test_any_other_return_is_an_error_that_says_what_is_allowed(judge, returned, words):
    (verdict,) = verdicts_of(judge, prompt_of("echo"), returned)
    assert (verdict.kind, verdict.score) == ("error", None)
    assert verdict.detail.startswith(f"shop.grading:echo returned the {words}")
    assert verdict.detail.endswith("; allowed: a bool, a score from 0 to 1 or a Verdict")


def test_exceptions_exits_and_crashes_are_errors_of_their_answer_alone(judge):
    assert "shop" not in sys.modules
    (failed, again) = verdicts_of(judge, prompt_of("fail"), "this", "that")
    assert (failed.kind, failed.detail) == ("error", "Private: no verdict on this")
    assert again.detail == "Private: no verdict on that"
    (left,) = verdicts_of(judge, prompt_of("leave"), "x")
    assert (left.kind, left.detail) == ("error", "SystemExit: I'm off")
    (crashed,) = verdicts_of(judge, prompt_of("crash"), "x")
    assert (crashed.kind, crashed.detail) == ("error", "the grading process died with exit code 3")
    assert seen(verdicts_of(judge, prompt_of("same", "x"), "x")) == [("right", None)]
    assert "shop" not in sys.modules, "nothing of it comes into the driver"


def test_one_that_hangs_ends_at_the_deadline_and_harms_no_other(judge):
    start = time.perf_counter()
    prompts = [prompt_of("hang"), *(prompt_of("same", str(n)) for n in range(20))]
    verdicts = judge.judge_answers(
        [p.ground_truth for p in prompts],
        [p.ground_truth for p in prompts],
        [p.data_source for p in prompts],
        prompts=prompts,
    )
    assert [v.kind for v in verdicts] == ["timeout"] + ["right"] * 20
    assert verdicts[0].detail == f"not graded within {DEADLINE_S:g} s"
    assert time.perf_counter() - start < DEADLINE_S + 3


def test_one_that_takes_much_memory_is_an_error(judge):
    (verdict,) = verdicts_of(judge, prompt_of("hog"), "x")
    assert (verdict.kind, verdict.detail) == ("error", "grading it takes more memory than verdict.memory_gib")


def test_an_import_is_under_no_deadline(judge):
    """Each worker has imported the modules before it takes an answer, one that took the place of a killed one, too."""
    for _ in range(2):
        assert (
            seen(verdicts_of(judge, prompt_of("slow", "0"), *map(str, range(8))))
            == [("right", None)] + [("wrong", None)] * 7
        )
        assert [v.kind for v in verdicts_of(judge, prompt_of("hang"), "x", "y")] == ["timeout"] * 2


def test_equal_answers_of_a_prompt_are_graded_once_and_never_kept(judge):
    """Two prompts with one ground truth may differ in extra_info; the verdict of tomorrow may be another."""
    one, other = prompt_of("asked", "4", n=1), prompt_of("asked", "4", n=2)
    (first,), (second,) = verdicts_of(judge, one, "4"), verdicts_of(judge, other, "4")
    assert (first.detail, second.detail) == ("? 4 4 {'n': 1}", "? 4 4 {'n': 2}")
    with Judge(VerdictConfig(workers=1, modes=judge.config.modes)) as alone:
        counted = [verdicts_of(alone, prompt_of("count"), "x", "x") for _ in range(2)]
    assert [[verdict.detail for verdict in verdicts] for verdicts in counted] == [["1", "1"], ["2", "2"]]


def test_a_grader_that_ends_its_worker_as_if_worn_ends_the_run_and_not_the_patience():
    modes = {"worn": "shop.grading:crash_as_if_worn"}
    with Judge(VerdictConfig(workers=1, modes=modes)) as judge, pytest.raises(RuntimeError, match="died twice"):
        verdicts_of(judge, prompt_of("worn"), "x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shopp.grading:same", "ModuleNotFoundError: No module named 'shopp'; install it in this environment, or put"),
        ("shop.broken:same", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'; install it"),
        ("shop.leaving:same", "SystemExit: not today; install"),
        ("shop.large:x", "importing it takes more memory than verdict.memory_gib; raise that"),
        ("shop.grading:sane", "shop/grading.py has no function sane"),
        ("shop.grading:number", "shop/grading.py has no function number"),
        ("shop.grading:later", "has no function later (async ones don't do)"),
        ("shop.grading:two", "two can't be called with prompt=, answer=, ground_truth=, extra_info= (missing a requi"),
        ("os:_exit_", "os.py has no function _exit_"),
    ],
)
def test_one_that_cannot_be_used_is_refused_before_a_run(name, reason):
    config = VerdictConfig(workers=1, memory_gib=MEMORY_GIB, modes={"my/source": name, "good": "shop.grading:same"})
    with pytest.raises(RecipeError) as refused:
        check_own_graders(config)
    first, *problems = str(refused.value).splitlines()
    assert first == "graders that can't be used:" and len(problems) == 1
    assert problems[0].startswith(f"  verdict.modes: 'my/source' = '{name}': ") and reason in problems[0]
    with Judge(config) as judge, pytest.raises(RecipeError):
        judge.warm_up()
    assert not {"shop", "shop.grading"} & set(sys.modules)


def test_an_import_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("megatron_nft.verdict.check.IMPORT_DEADLINE_S", 1.0)
    with pytest.raises(RecipeError, match=r"'shop.sleeping:same': not imported within 1 s; have its module do less"):
        check_own_graders(VerdictConfig(modes={"shop": "shop.sleeping:same"}))


def test_a_recipe_of_published_modes_starts_nothing_for_the_check(monkeypatch):
    monkeypatch.setattr("megatron_nft.verdict.check.GradingPool", None)
    config = VerdictConfig(modes={"shop": "last_number"})
    assert own_graders(config) == []
    check_own_graders(config)


def test_the_readmes_example_works(judge):
    prompt = prompt_of("words", "Tokyo", must_have=["Tokyo", "Japan"])
    assert seen(verdicts_of(judge, prompt, "Tokyo, in Japan", "Tokyo", "Rome")) == [
        ("right", 1.0),
        ("wrong", 0.5),
        ("wrong", 0.0),
    ]


def test_an_evaluation_gives_it_all_four(judge):
    from megatron_nft.evaluate import grade

    prompt = prompt_of("asked", "4", "2+2=", n=1)
    benchmark = SimpleNamespace(prompts=[prompt, prompt_of("same", "5")])
    samples = SimpleNamespace(answers=lambda prompt, count: (SimpleNamespace(text="4", truncated=False),) * count)
    asked, same = grade(benchmark, 2, samples, judge, SimpleNamespace(verdict=judge.config))
    assert [verdict.detail for verdict in asked.verdicts] == ["2+2= 4 4 {'n': 1}"] * 2
    assert same.rights == [False, False]


def test_the_working_directory_is_looked_in(tmp_path):
    """An installed command, unlike python -m, doesn't have it in its path."""
    (tmp_path / "beside.py").write_text("def always(**others):\n    return True\n")
    (tmp_path / "command.py").write_text(
        "import sys\nsys.path = [p for p in sys.path if p]\n"
        "from megatron_nft.config import VerdictConfig\nfrom megatron_nft.verdict.judge import Judge\n"
        "with Judge(VerdictConfig(workers=1, modes={'s': 'beside:always'})) as judge:\n"
        "    judge.warm_up()\n    print(judge.judge_answers(['x'], ['y'], ['s'])[0].kind)\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "command.py").rename(tmp_path / "bin/command.py")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    finished = subprocess.run(
        [sys.executable, "bin/command.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (finished.stdout, finished.stderr) == ("right\n", "")
