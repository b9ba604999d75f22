r"""Answers that hang, eat memory, look like code or like the ground truth: none is late, none counts as right."""

import multiprocessing
import threading
import time

import psutil
import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import REGRADE_DEADLINES, Judge

WORKERS, DEADLINE_S = 2, 0.5
MEMORY_GIB = 0.5
LATE_S = (1 + WORKERS) * DEADLINE_S + 3  # each is graded once more, alone; workers are started again
ATTEMPTS = 3  # a late verdict may be the busy machine's fault: a real one is late every time

DETERMINANT = r"\\".join("&".join(f"x_{{{row}{column}}}" for column in range(9)) for row in range(9))

HANGING = [
    r"9^{9^{9}}", r"2^{2^{2^{2^{2^{2}}}}}", r"7^{7^{7^{7}}}", r"((9!)!)!", r"100000000!",
    r"\frac{100000000!}{99999999!}", r"\binom{10^{9}}{5\cdot10^{8}}", r"\sum_{k=1}^{10^{9}} \frac{1}{k}",
    r"\prod_{k=1}^{10^{8}} k", r"\int_0^{1} x^{x^{x}} dx", r"\int_0^\infty \frac{\sin^{99} x}{x^{99}} dx",
    r"\Gamma(10^{9})", r"\gcd(2^{10^9}, 3)", r"\lfloor 10^{10^{10}} \pi \rfloor",
    r"\sqrt{2}^{9^{9^{9}}}", r"\sqrt{3}^{7^{7^{7^{7}}}}", r"\pi^{9^{9^{9}}}",
    r"\sin(9^{9^{9}})", r"\tan(3^{9^{9}}) + i", r"\sin(10^{10^{10}}) + \cos(10^{10^{9}})",
    r"10^{9999999} + 1", r"\det\begin{pmatrix}" + DETERMINANT + r"\end{pmatrix}",
]  # fmt: skip
LONG = [
    "{" * 50_000 + "7" + "}" * 50_000, "{" * 100_000, "}" * 100_000, "a" * 100_000, "\\" * 100_000, "\\{" * 50_000,
    r"\boxed{" * 15_000, r"\boxed{" * 10_000 + "}" * 10_000, "(" * 2000 + "7" + ")" * 2000, "+".join(["1"] * 3000),
    "9" * 5000, "0." + "9" * 3000, r"\frac{1}{" * 300 + "7" + "}" * 300, r"\sqrt{" * 200 + "7" + "}" * 200,
    r"\begin{pmatrix}" + r"1 & 2 \\ " * 500 + r"\end{pmatrix}", "$" * 10_000, "8" * 4299,
    "~" * 1999 + "8", "8" + "~" * 1999, r"\," * 50_000,
]  # fmt: skip
CODE = [
    "__import__('os').system('sleep 30')", "exec('while 1: pass')", "eval('3+4')", "lambda: 7", "7 if True else 8",
    "open('/etc/passwd').read()", "().__class__.__bases__[0].__subclasses__()", "[7 for _ in iter(int, 1)]",
    r"\def\x{\x\x}\x", r"\newcommand{\x}{\x\x}\x", r"\input{/etc/passwd}", r"\write18{sleep 30}", r"\loop 7 \repeat",
    r"\csname 7\endcsname", "{{7*7}}", "<script>7</script>", "'; DROP TABLE verdicts; --7", "%7", "#7",
]  # fmt: skip
ODD = [
    "", " ", "$$", ".", r"\text{}", r"\boxed{}", "\0", "7\0", "\0" * 1000, "７7", "VII", "七", "\u202e7",
    "7\u202e8", "−7", "-7", "+-7", r"\pm 7", "7?", "7..8", "7, 8", "1, 7", r"1 \text{ or } 7", r"7 \vee 8", r"\{7, 8\}",
    "[7, 8]", r"x \in \{7, 8\}", "7 = 8", "x = x", "7.0001", "6.9999999", "7,000", "7e1", "1/0", "0/0", "nan",
    "1e999999999", r"\log_{0} 1", "i^{i^{i}}", r"\zeta(\frac{1}{2} + 10^{9} i)", r"x^{x^{x^{x^{x}}}}", "((((7",
    "7))))8", r"\frac{7}{", "A7B", r"\infty",
]  # fmt: skip
GOLD = "7"


@pytest.fixture(scope="module")
def judge():
    with Judge(VerdictConfig(workers=WORKERS, deadline_s=DEADLINE_S, memory_gib=MEMORY_GIB)) as judge:
        judge.warm_up()
        yield judge


@pytest.fixture(scope="module")
def largest_worker_gib(judge):
    """The most memory that any worker has been seen with while the tests of this module ran."""
    largest, over = [0.0], threading.Event()

    def watch():
        while not over.wait(0.02):
            for child in multiprocessing.active_children():
                try:
                    largest[0] = max(largest[0], psutil.Process(child.pid).memory_info().rss / 2**30)
                except psutil.NoSuchProcess:
                    continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield largest
    over.set()
    thread.join()


def seconds(judge, *texts, gold=GOLD):
    """What answers cost that are graded at once, by a worker each, and their verdicts; the best of a few attempts if
    they are late."""
    found = []
    while not found or (min(found)[0] >= LATE_S and len(found) < ATTEMPTS):
        start = time.perf_counter()
        verdicts = judge.judge_answers(texts, [gold] * len(texts), ["math"] * len(texts))
        found.append((time.perf_counter() - start, [verdict.kind for verdict in verdicts]))
    return min(found)


@pytest.mark.parametrize("answers", [HANGING, LONG, CODE, ODD], ids=["hanging", "long", "code", "odd"])
def test_none_is_late_and_none_is_right(judge, largest_worker_gib, answers):
    gold = r"\sqrt{7}" if answers is HANGING else GOLD  # for a number most would not be final, and not be begun
    late, kinds = [], []
    for first in range(0, len(answers), WORKERS):
        some = answers[first : first + WORKERS]
        spent_s, theirs = seconds(judge, *[rf"So the answer is \boxed{{{answer}}}." for answer in some], gold=gold)
        late += [answer[:80] for answer in some if spent_s >= LATE_S]
        kinds += theirs
    assert late == [] and len(kinds) == len(answers)
    assert [answer[:80] for answer, kind in zip(answers, kinds, strict=True) if kind == "right"] == []
    if answers is HANGING:
        assert kinds.count("timeout") >= 3


def test_there_are_enough_of_them():
    assert len({*HANGING, *LONG, *CODE, *ODD}) >= 60


@pytest.mark.parametrize(
    ("text", "gold", "kind"),
    [
        (r"\boxed{7} ... wait, \boxed{8}", "7", "wrong"),  # the last box counts
        (r"\boxed{8} ... wait, \boxed{7}", "7", "right"),
        (r"\boxed{7} \boxed{", "7", "right"),
        (r"\boxed{7} \boxed{}", "7", "unparsable"),
        ("7", "7", "unparsable"),
        (r"\boxed{x}", "х", "error"),  # a Cyrillic ground truth is no formula
        (r"\boxed{а}", "a", "unparsable"),  # and a Cyrillic answer no Latin one
        (r"\boxed{10^{9999999}}", "10^{9999998}", "wrong"),
        (r"\boxed{" + "(" * 60 + "7" + ")" * 60 + "}", "7", "right"),
    ],
)
def test_boxes_and_look_alikes(judge, text, gold, kind):
    for _ in range(ATTEMPTS):
        _, (found,) = seconds(judge, text, gold=gold)
        if found == kind or found != "timeout":  # that may be the busy machine's fault
            break
    assert found == kind


def test_memory_is_bounded(judge, largest_worker_gib):
    seconds(judge, r"\boxed{((9!)!)!}")
    assert 0 < largest_worker_gib[0] < 0.3 + MEMORY_GIB  # a fresh worker has 0.1 to 0.2 GiB


@pytest.mark.parametrize("text", [*LONG, *CODE, *ODD])
def test_other_modes_have_no_false_right_either(text):
    from megatron_nft.verdict.graders import MODES

    start = time.perf_counter()
    for mode in ("strict_boxed", "last_number"):
        extracted = MODES[mode].extract(rf"So the answer is \boxed{{{text}}}.")
        assert extracted is None or MODES[mode].judge(extracted, "77").kind in ("wrong", "unparsable")
    assert time.perf_counter() - start < 1


def test_hanging_answers_among_many(judge):
    """5% of 200 hang: the time is theirs, no other verdict is lost, and as many workers are there as before."""
    workers = len(multiprocessing.active_children())
    answers = [
        rf"\boxed{{{n} + \pi^{{9^{{9^{{9}}}}}}}}" if n % 20 == 0 else rf"\boxed{{{2 * n + 1}/2 \,}}" for n in range(200)
    ]
    golds = [r"\sqrt{3}" if n % 20 == 0 else str(n + 0.5) for n in range(200)]
    start = time.perf_counter()
    verdicts = judge.judge_answers(answers, golds, ["math"] * 200)
    spent_s = time.perf_counter() - start
    late = [n for n, verdict in enumerate(verdicts) if verdict.kind == "timeout" and n % 20]
    again = judge.judge_answers([answers[n] for n in late], [golds[n] for n in late], ["math"] * len(late))
    kinds = [verdict.kind for verdict in verdicts]
    for n, verdict in zip(late, again, strict=True):
        kinds[n] = verdict.kind
    assert len(late) <= 5 and kinds == ["timeout" if n % 20 == 0 else "right" for n in range(200)]
    assert spent_s < 10 * (DEADLINE_S + 1) / 2 + REGRADE_DEADLINES * (DEADLINE_S + 1) + 10
    until = time.monotonic() + 5  # the last one killed is being replaced
    while len(multiprocessing.active_children()) < workers and time.monotonic() < until:
        time.sleep(0.05)
    assert len(multiprocessing.active_children()) == workers
