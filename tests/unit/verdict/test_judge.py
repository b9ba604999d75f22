import ctypes
import dataclasses
import multiprocessing
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict
from megatron_nft.verdict import boxes
from megatron_nft.verdict.judge import Judge, judge_answers
from megatron_nft.verdict.math_answer import warm_up
from megatron_nft.verdict.pool import GradingPool, JudgeError, nothing

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 1.0
HANGING = (r"\boxed{\sqrt{2}^{9^{9^{9}}}}", r"\boxed{\sqrt{3}^{7^{7^{7^{7}}}}}", r"\boxed{\pi^{9^{9^{9}}}}")
ROOT = r"\frac{\sqrt{2}}{2}"
"""A ground truth for which they are begun: for a number they would not be final."""


@pytest.fixture(scope="module")
def judge():
    with Judge(VerdictConfig(workers=2, deadline_s=DEADLINE_S)) as judge:
        judge.warm_up()
        yield judge


def kinds(judge: Judge, answers: list[str], gold: str = "0.5") -> list[str]:
    return [v.kind for v in judge.judge_answers(answers, [gold] * len(answers), ["math"] * len(answers))]


def group(gold: str, *texts: str, truncated: bool = False) -> RolloutGroup:
    prompt = Prompt(prompt_id="t/0", text="?", token_ids_P=np.zeros(1, np.int32), ground_truth=gold, data_source="math")
    rollouts = tuple(
        Rollout(
            text=text,
            token_ids_A=np.zeros(1, np.int32),
            engine_logprobs_A=np.zeros(1, np.float32),
            truncated=truncated,
            policy_version=0,
        )
        for text in texts
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


def test_groups_come_back_with_their_verdicts_in_order(judge):
    seen = []
    groups = [group("7", r"\boxed{7}", "7", r"\boxed{8}"), group("8", r"\boxed{8}", r"\boxed{7}", truncated=True)]
    judged = judge.judge(groups, lambda done, total: seen.append((done, total)))
    assert [[v.kind for v in g.verdicts] for g in judged] == [["right", "unparsable", "wrong"], ["right", "wrong"]]
    assert judged[0].verdicts[1].detail == r"no \boxed{...} in the answer"
    assert judged[0].correct_rate == 1 / 3
    assert judged[1].correct_rate == 0, "a truncated answer counts as wrong, though graded right"
    assert groups[0].verdicts == ()
    assert seen[-1] == (5, 5)
    assert judge.judge([]) == []


@pytest.mark.parametrize("hanging", HANGING)
def test_a_hanging_answer_ends_at_its_deadline_and_harms_no_other(judge, hanging):
    start = time.perf_counter()
    answers = [rf"\boxed{{\frac{{{n}\sqrt{{2}}}}{{{2 * n}}}}}" for n in range(1, 21)]
    assert kinds(judge, [*answers[:10], hanging, *answers[10:]], ROOT) == ["right"] * 10 + ["timeout"] + ["right"] * 10
    assert time.perf_counter() - start < 2 * DEADLINE_S + 3  # it is graded once more
    assert kinds(judge, [r"\boxed{\frac{3}{6}}", r"\boxed{3}"]) == ["right", "wrong"]


def test_equal_answers_are_graded_once(judge):
    start = time.perf_counter()
    assert Counter(kinds(judge, [r"so \boxed{2\sqrt{2}/4}", HANGING[0]] * 64, ROOT)) == {"right": 64, "timeout": 64}
    assert time.perf_counter() - start < 2 * DEADLINE_S + 3  # it is graded once more
    start = time.perf_counter()
    assert kinds(judge, [r"again \boxed{2\sqrt{2}/4}"] * 5000, ROOT) == ["right"] * 5000
    assert time.perf_counter() - start < 4, "graded one by one they take 15 s"


def test_the_cache_tells_ground_truths_apart(judge):
    verdicts = judge.judge_answers([r"\boxed{11}"] * 2, ["11.0", "12"], ["math"] * 2)
    assert [v.kind for v in verdicts] == ["right", "wrong"]


@pytest.mark.parametrize("first", ["math", "words"])
def test_the_cache_tells_graders_apart(first):
    """Two modes may extract the same text, and say different things of it."""
    answers = {"math": r"\boxed{so it is 7}", "words": "so it is 7"}
    with Judge(VerdictConfig(workers=1, deadline_s=20.0, modes={"words": "whole_text"})) as judge:
        found = {
            source: judge.judge_answers([answers[source]], ["7"], [source])[0].kind
            for source in sorted(answers, key=lambda source: source != first)
        }
    assert found == {"math": "wrong", "words": "right"}


def test_workers_read_the_texts_and_the_driver_none(judge, monkeypatch):
    def never(text):
        raise AssertionError("the driver reads a text")

    monkeypatch.setattr(boxes, "_boxes", never)
    monkeypatch.setattr(boxes, "behind_thought", never)
    assert kinds(judge, [r"\boxed{0.5}", r"\boxed{5/10}", r"\boxed{\sqrt{2}}", "0.5"]) == [
        "right", "right", "wrong", "unparsable",
    ]  # fmt: skip


def test_the_answer_stands_behind_the_thought(judge):
    texts = [r"<think>\boxed{7}</think>\boxed{5}", r"<think>so \boxed{5}", r"so \boxed{5}, wait", r"a</think>\boxed{5}"]
    (plain,) = judge.judge([group("5", *texts)])
    assert [v.kind for v in plain.verdicts] == ["right", "unparsable", "right", "right"]
    opened = group("5", *texts)
    opened = dataclasses.replace(opened, prompt=dataclasses.replace(opened.prompt, text="Q: ?\n<think>\n"))
    (thinking,) = judge.judge([opened])
    assert [v.kind for v in thinking.verdicts] == ["right", "unparsable", "unparsable", "right"]
    assert thinking.verdicts[1].detail == boxes.UNFINISHED
    with Judge(VerdictConfig(workers=1, thoughts=False)) as other:
        assert kinds(other, texts, gold="5") == ["right"] * 4


def test_an_empty_ground_truth_is_an_error_in_every_mode(judge):
    sources = ["math", "math_dapo", "math_dapo_boxed", "openai/gsm8k"]
    verdicts = judge.judge_answers([r"Answer: \boxed{}"] * 4, ["", " ", "", ""], sources)
    assert {v.kind for v in verdicts} == {"error"}


def test_ground_truths_are_checked_by_the_workers(judge):
    golds = ["42", "t(0,4]", r"\sqrt{2}", ""]
    prompts = [dataclasses.replace(group(gold, "x").prompt, prompt_id=f"t/{place}") for place, gold in enumerate(golds)]
    assert [(p.row, p.taken_by) for p in judge.gold_problems(prompts)] == [("t/1", "strict_boxed"), ("t/3", "")]


def test_the_question_tells_what_is_copied_and_whether_a_list_has_an_order(judge):
    def asked(question, gold, answer):
        one = group(gold, rf"\boxed{{{answer}}}")
        (judged,) = judge.judge([dataclasses.replace(one, prompt=dataclasses.replace(one.prompt, text=question))])
        return judged.verdicts[0].kind

    assert asked("Simplify $(x+1)(x-1)$.", "x^2-1", "(x+1)(x-1)") == "wrong"
    assert asked("Is $x^2$ or $1/x$ larger?", r"\frac{1}{x}", "1/x") == "right"
    assert asked("What is left?", "x^2-1", "(x+1)(x-1)") == "right"
    assert asked(r"Compute $\tan 45^\circ$.", "1", r"\tan 45^\circ") == "wrong"
    assert asked("Find all $x$ with $x^2 = 4$.", "2, -2", "-2, 2") == "right"
    assert asked("Which comes first? Give both.", "2, -2", "-2, 2") == "wrong"
    assert asked("List all roots in increasing order.", "1, 3", "3, 1") == "wrong"


def test_it_works_in_a_thread(judge):
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(kinds(judge, [r"\boxed{\sqrt{1/2}}", r"\boxed{9}", HANGING[0]], ROOT))
    )
    thread.start()
    thread.join(60)
    assert found == ["right", "wrong", "timeout"]
    assert kinds(judge, [r"\boxed{5/10}"]) == ["right"]


def test_a_pool_started_in_a_thread_outlives_the_thread():
    with Judge(VerdictConfig(workers=1)) as judge:
        thread = threading.Thread(target=judge.warm_up)
        thread.start()
        thread.join(60)
        time.sleep(0.3)
        assert kinds(judge, [r"\boxed{5/10}"]) == ["right"]


def test_one_shot():
    verdicts = judge_answers([r"\boxed{1}", r"\boxed{2}", "3"], ["1", "1", "3"], ["a", "b", "c"], workers=1)
    assert [v.kind for v in verdicts] == ["right", "wrong", "unparsable"]


@pytest.mark.parametrize("how", ["file", "stdin", "module"])
def test_a_script_needs_no_main_guard(tmp_path, how):
    script = (
        "from megatron_nft.verdict.judge import judge_answers\nprint('once')\n"
        r"texts = [r'\boxed{1}', r'\boxed{\pi^{9^{9^{9}}}}']"
        "\n"
        r"print([v.kind for v in judge_answers(texts, ['1.0', r'\sqrt{3}'], ['m'] * 2, 1.0)])"
    )
    (tmp_path / "grade.py").write_text(script)
    arguments = {"file": [str(tmp_path / "grade.py")], "stdin": ["-"], "module": ["-m", "grade"]}[how]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    finished = subprocess.run(
        [sys.executable, *arguments], input=script, env=environment, capture_output=True, text=True, timeout=60
    )
    # A worker that takes a killed one's place may still be starting when the script ends, and then misses its parent.
    said = re.sub(r"Traceback(?:(?!Traceback).)*?FileNotFoundError: [^\n]*\n", "", finished.stderr, flags=re.DOTALL)
    assert (finished.stdout, said) == ("once\n['right', 'timeout']\n", "")


def test_lists_of_different_lengths_are_refused(judge):
    with pytest.raises(ValueError, match="longer"):
        judge.judge_answers(["1"], ["1", "2"], ["math"])


def test_workers_that_crash_or_eat_memory_give_errors():
    pool = GradingPool(1, warm_up)
    six_gib = 6 << 30
    try:
        crash, eat, fail = pool.run([(ctypes.string_at, 1, 8), (operator.mul, "a", six_gib), (operator.add, 1, "")], 20)
    finally:
        pool.close()
    assert (crash.kind, crash.detail) == ("error", "the grading process died with exit code -11")
    assert (eat.kind, eat.detail) == ("error", "grading it takes more memory than verdict.memory_gib")
    assert fail.kind == "error" and fail.detail.startswith("TypeError: unsupported operand")


def test_workers_killed_while_idle_are_replaced_and_ctrl_c_is_not_theirs():
    before = set(multiprocessing.active_children())
    with Judge(VerdictConfig(workers=1)) as judge:
        judge.warm_up()
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGINT)
        assert kinds(judge, [r"\boxed{5/10}"]) == ["right"]
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        assert kinds(judge, [r"\boxed{6/12}", r"\boxed{7}"]) == ["right", "wrong"]
    assert set(multiprocessing.active_children()) <= before


def test_an_end_does_not_wait_for_answers_that_are_graded():
    """Another thread is at it, and its calls have no end; Python would wait for that thread."""
    pool, ended = GradingPool(1, nothing), []

    def grade():
        try:
            pool.run([(time.sleep, 600)] * 3, 600.0)
        except JudgeError as error:
            ended.append(str(error))

    thread = threading.Thread(target=grade)
    thread.start()
    while pool._pool is None or not multiprocessing.active_children():
        time.sleep(0.05)
    start = time.monotonic()
    pool.close()
    thread.join(30)
    assert ended == ["grading was ended while answers were graded"] and time.monotonic() - start < 20


def test_broken_grading_is_an_error_not_a_wrong_answer(tmp_path):
    (tmp_path / "latex2sympy2_extended.py").write_text("raise ImportError('it was built for another antlr')")
    finished = run_python("Judge(VerdictConfig(workers=1)).warm_up()", PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert finished.wait(60) != 0
    message = finished.stderr.read().decode()
    assert f"{JudgeError.__name__}: grading is broken" in message
    assert "should be 'right' but is 'error' (ImportError while comparing" in message


def test_workers_die_with_a_killed_driver():
    mark = f"judge-test-{os.getpid()}-{time.time()}"
    code = r"judge = Judge(VerdictConfig(deadline_s=60)); judge.warm_up(); print('warm', flush=True);" + (
        r"judge.judge_answers([r'\boxed{\pi^{9^{9^{9}}}}'], [r'\sqrt{3}'], ['math'])"
    )
    driver = run_python(code, MARK=mark, PYTHONPATH=str(REPOSITORY))
    try:
        assert driver.stdout.readline() == b"warm\n"
        assert len(processes_with(mark)) >= 4, "the driver, the fork server, two workers"
    finally:
        driver.kill()
        driver.wait(10)
    deadline = time.monotonic() + 10
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(mark) == []


def run_python(code: str, **environment: str) -> subprocess.Popen:
    code = f"from megatron_nft.config import *; from megatron_nft.verdict.judge import *; {code}"
    environment = {**os.environ, **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe)


def processes_with(mark: str) -> list[int]:
    """Living processes that have MARK=mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # gone, or not ours
    return found


def test_a_worker_that_keeps_memory_is_replaced_before_the_next_call():
    pool = GradingPool(1, warm_up, memory_gib=0.5)
    try:
        (first,) = pool.run([(_pid, "", "")], 20)
        (hoarder,) = pool.run([(_hoard, "", "")], 20)
        assert hoarder.detail == first.detail
        after = [verdict.detail for verdict in pool.run([(_pid, "", "")] * 3, 20)]
    finally:
        pool.close()
    assert len(set(after)) == 1 and after[0] != first.detail


_hoarded: list[bytes] = []


def _pid(answer: str, gold: str) -> Verdict:
    return Verdict(kind="right", detail=str(os.getpid()))


def _hoard(answer: str, gold: str) -> Verdict:
    _hoarded.append(b"x" * (300 << 20))
    return _pid(answer, gold)
