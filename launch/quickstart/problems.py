"""Arithmetic word problems of one to three steps, and the pupils who solve them, rightly or with typical mistakes.

A seed comes in, `Problem`s and `Demonstration`s go out; pure functions, no files. make_assets.py writes the problems to
parquet and warms the quickstart's base model up on the demonstrations.

Pupils are of two kinds. Careful ones write down what happens before each sum ("buys: 23+5=28"), and nearly always take
the right operation. Hasty ones write bare sums, often take the wrong operation ("That is 5 fewer than Ann has"
misleads most, "buys 5 more" few), forget the last step, or slip in a sum. The longer the story, the fewer pupils take
care. A model that imitates them all has both ways in it, and gets most answers wrong.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Operation = Literal["+", "-", "*"]

REQUEST = "Put the answer in \\boxed{}."
DATA_SOURCE = "quickstart/word_problems"

BOYS = ("Tom", "Ben", "Max", "Leo", "Sam", "Jack", "Paul", "Omar")
GIRLS = ("Ann", "Mia", "Eva", "Zoe", "Lily", "Nina", "Sara", "Emma")
THINGS = (
    "apples", "pens", "cards", "coins", "books", "stamps", "marbles", "shells",
    "stickers", "cookies", "balls", "eggs", "buttons", "flowers", "stones", "toys",
)  # fmt: skip
LARGEST_RESULT = 99
"""Every intermediate and final result of a problem lies in 1..99: two digits, which a 1 M model learns in minutes."""


@dataclass(frozen=True)
class Phrase:
    """One step of a story. In `text`, {He} and {him} hold the things so far, {other} is somebody else."""

    text: str
    quote: str  # the words of it that a careful pupil writes down
    operation: Operation
    mistaken_for: Operation
    right_rate: float  # share of hasty pupils who take the right operation
    moves: bool = False  # the question then is about {other}


PHRASES = (
    Phrase("{He} buys {k} more.", "buys", "+", "-", 0.80),
    Phrase("{He} finds {k} at home.", "finds", "+", "-", 0.65),
    Phrase("{He} wins {k} in a game.", "wins", "+", "-", 0.55),
    Phrase("{other} gives {him} {k}.", "gives", "+", "-", 0.40),
    Phrase("{He} gets {k} back.", "gets back", "+", "-", 0.30),
    Phrase("{He} loses {k}.", "loses", "-", "+", 0.75),
    Phrase("{He} gives {k} to {other}.", "gives to", "-", "+", 0.60),
    Phrase("{He} sells {k} of them.", "sells", "-", "+", 0.45),
    Phrase("{He} lends {other} {k}.", "lends", "-", "+", 0.35),
    Phrase("{k} of them are missing.", "missing", "-", "+", 0.25),
    Phrase("{other} has {k} more.", "more", "+", "-", 0.55, moves=True),
    Phrase("{other} has {k} fewer.", "fewer", "-", "+", 0.35, moves=True),
    Phrase("That is {k} fewer than {other} has.", "fewer than", "+", "-", 0.15, moves=True),
    Phrase("That is {k} more than {other} has.", "more than", "-", "+", 0.15, moves=True),
    Phrase("{other} has {k} times as many.", "times", "*", "+", 0.50, moves=True),
    Phrase("{He} fills {k} such bags.", "such bags", "*", "+", 0.30),
)
STEPS_SHARE = {1: 0.35, 2: 0.40, 3: 0.25}
"""Number of steps -> share of the problems."""

CAREFUL_SHARE = {1: 0.38, 2: 0.30, 3: 0.22}
"""Number of steps -> share of pupils who take care."""
CAREFUL_RIGHT_RATE = 0.98
"""Share of careful pupils who take the right operation, whatever the phrase."""
FINISHES_RATE = {1: 1.0, 2: 0.70, 3: 0.50}
"""Number of steps -> share of hasty pupils who don't forget the last one."""
SLIP_RATE = 0.03
"""Share of hasty pupils' steps whose result is off by one or by ten."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a problem: phrase number `phrase` of PHRASES with the number `k`."""

    phrase: int
    k: int

    @property
    def operation(self) -> Operation:
        return PHRASES[self.phrase].operation


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A word problem: start with `start` things, take the steps."""

    text: str
    start: int
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        value = self.start
        for step in self.steps:
            value = calculate(value, step.operation, step.k)
        return value

    @property
    def signature(self) -> tuple[Any, ...]:
        """What makes it this problem, whoever acts in it: names and things don't count."""
        return (self.start, *((step.phrase, step.k) for step in self.steps))


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A pupil's answer to a problem."""

    problem: Problem
    answer: str
    is_careful: bool
    is_right: bool


def calculate(a: int, operation: Operation, b: int) -> int:
    return a + b if operation == "+" else a - b if operation == "-" else a * b


def problems(
    seed: int,
    *,
    without: frozenset[tuple[Any, ...]] = frozenset(),
    unique: bool = True,
    steps_share: Mapping[int, float] = STEPS_SHARE,
) -> Iterator[Problem]:
    """An endless stream of problems with signatures that are not in `without`; with `unique`, none comes twice."""
    rng = random.Random(seed)
    seen = set(without)
    while True:
        problem = _draw_problem(rng, steps_share)
        if problem.signature in seen:
            continue
        if unique:
            seen.add(problem.signature)
        yield problem


def demonstrations(seed: int, *, without: frozenset[tuple[Any, ...]]) -> Iterator[Demonstration]:
    """An endless stream of pupils' answers to problems that are not in `without`; each by another pupil."""
    rng = random.Random(f"pupils {seed}")
    for problem in problems(seed, without=without, unique=False):
        is_careful = rng.random() < CAREFUL_SHARE[len(problem.steps)]
        answer = _answer_with_care(problem, rng) if is_careful else _answer_in_haste(problem, rng)
        is_right = answer.endswith(f"\\boxed{{{problem.answer}}}")
        yield Demonstration(problem=problem, answer=answer, is_careful=is_careful, is_right=is_right)


def drills(seed: int, *, sums: int = 8) -> Iterator[tuple[str, str]]:
    """An endless stream of (prompt, answer): sheets of bare sums, all solved rightly.

    Four times as many sums per token as in stories, so that arithmetic costs the warm-up minutes instead of an hour.
    """
    rng = random.Random(f"drills {seed}")
    while True:
        sheet: list[str] = []
        while len(sheet) < sums:
            operation = rng.choice(("+", "+", "-", "-", "*"))
            numbers = _draw_numbers(rng, [operation], most=90)
            if numbers:
                start, (k,) = numbers
                sheet.append(f"{start}{operation}{k}={calculate(start, operation, k)}")
        yield "How", "\n".join(sheet)


def right_answer(problem: Problem) -> str:
    """The worked solution: one equation a step, then the boxed answer."""
    taken = [(step.operation, step.k) for step in problem.steps]
    return _write_answer(problem.start, taken, quotes=_quotes(problem))


def as_row(problem: Problem, *, index: int, split: str) -> dict[str, Any]:
    """The problem in the schema of DAPO's and verl's parquet files."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": problem.text}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {"index": index, "split": split},
    }


def _draw_problem(rng: random.Random, steps_share: Mapping[int, float]) -> Problem:
    while True:
        num_steps = rng.choices(list(steps_share), list(steps_share.values()))[0]
        chosen = rng.sample(range(len(PHRASES)), num_steps)
        numbers = _draw_numbers(rng, [PHRASES[i].operation for i in chosen])
        if numbers:
            start, ks = numbers
            steps = tuple(Step(phrase=i, k=k) for i, k in zip(chosen, ks, strict=True))
            return Problem(text=_tell(rng, start, steps), start=start, steps=steps)


def _draw_numbers(rng: random.Random, operations: list[Operation], most: int = 50) -> tuple[int, list[int]] | None:
    value = start = rng.randint(3, 12 if "*" in operations else most)
    ks = []
    for operation in operations:
        k = rng.randint(2, 5 if operation == "*" else 9)
        if operation == "*" and value > 12:  # stay within the small times table
            return None
        value = calculate(value, operation, k)
        if not 1 <= value <= LARGEST_RESULT:
            return None
        ks.append(k)
    return start, ks


def _tell(rng: random.Random, start: int, steps: tuple[Step, ...]) -> str:
    names = rng.sample(BOYS + GIRLS, len(steps) + 1)
    things = rng.choice(THINGS)
    holder, others = names[0], names[1:]
    sentences = [f"{holder} has {start} {things}."]
    for step, other in zip(steps, others, strict=True):
        phrase = PHRASES[step.phrase]
        he, him = ("He", "him") if holder in BOYS else ("She", "her")
        sentences.append(phrase.text.format(He=he, him=him, other=other, k=step.k))
        holder = other if phrase.moves else holder
    return " ".join([*sentences, f"How many {things} does {holder} have now?", REQUEST])


def _answer_with_care(problem: Problem, rng: random.Random) -> str:
    taken = _take(problem, rng, [CAREFUL_RIGHT_RATE] * len(problem.steps))
    return _write_answer(problem.start, taken, quotes=_quotes(problem))


def _answer_in_haste(problem: Problem, rng: random.Random) -> str:
    taken = _take(problem, rng, [PHRASES[step.phrase].right_rate for step in problem.steps])
    if rng.random() >= FINISHES_RATE[len(taken)]:
        taken.pop()
    return _write_answer(problem.start, taken, slips=rng)


def _take(problem: Problem, rng: random.Random, right_rates: list[float]) -> list[tuple[Operation, int]]:
    """The operation that a pupil takes at each step."""
    taken: list[tuple[Operation, int]] = []
    for step, right_rate in zip(problem.steps, right_rates, strict=True):
        phrase = PHRASES[step.phrase]
        taken.append((phrase.operation if rng.random() < right_rate else phrase.mistaken_for, step.k))
    return taken


def _quotes(problem: Problem) -> list[str]:
    return [PHRASES[step.phrase].quote for step in problem.steps]


def _write_answer(
    start: int,
    taken: list[tuple[Operation, int]],
    *,
    quotes: list[str] | None = None,
    slips: random.Random | None = None,
) -> str:
    lines = []
    value = start
    for i, (operation, k) in enumerate(taken):
        # Pupils have no negative numbers: they take the smaller from the larger.
        a, b = (k, value) if operation == "-" and k > value else (value, k)
        value = calculate(a, operation, b)
        if slips and slips.random() < SLIP_RATE:
            value = max(0, value + slips.choice((-10, -1, 1, 10)))
        lines.append(f"{quotes[i]}: {a}{operation}{b}={value}" if quotes else f"{a}{operation}{b}={value}")
    return "\n".join([*lines, f"\\boxed{{{value}}}"])
