"""The rollouts of the 32B recipe's step at 128 GPUs, in virtual time: how far they are from what its engines can do.

    python -m benchmarks.scale.sampling rounds [--groups 8]  # by the share of mixed groups: rounds and prompts a step
    python -m benchmarks.scale.sampling steps [--steps 8]    # seconds of a step, by how its sampling is arranged

Queue, stream, places and expected lengths are the run's own (groups/, cluster/); engines are played (virtual.py).
Answers are lognormal, those to one prompt alike; the longest allowed cuts 4% of them. What a prompt's own length says
of its answers: nothing.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.planner.rows import COMMON, MODELS
from benchmarks.scale.virtual import Answers, VirtualEngine, VirtualFleet, zeros
from megatron_nft.cluster.stream import RequestStream, stream_answers
from megatron_nft.config import Config, load_config
from megatron_nft.groups.lengths import ExpectedTokens
from megatron_nft.groups.queue import GroupQueue
from megatron_nft.groups.share import MixedShare
from megatron_nft.plan import rounds as rounds_module
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.planner import Plan, make_plan
from megatron_nft.plan.rollouts import rollout_round
from megatron_nft.plan.workload import Assumptions
from megatron_nft.rollout.api import Request, Sampling, requests_of
from megatron_nft.run.held_out import requests_to
from megatron_nft.types import Prompt

RECIPE = "launch/recipes/nft_qwen2.5_32b_16x8h100.toml"
DEFAULT_STEPS = {"rounds": 1000, "steps": 8}
SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
BENCHMARKS = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "olympiad": 675, "minerva": 272}


@cache
def recipe_plan() -> Plan:
    """Of the recipe, of which only the model's config.json is not at hand."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(COMMON | MODELS["Qwen2.5-32B"]))
        config = load_config(RECIPE, [f"model.path={json.dumps(folder)}"], checks_weights=False)
        from megatron_nft.families.hf_config import read_hf_config

        return make_plan(config, read_hf_config(folder), load_machine("H100"), Assumptions())


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """What is asked how."""

    name: str
    share: float = 0.5
    pool: int = 10**6  # prompts, after which they come again
    tail: str = "wait"
    places: str = "answers"  # that engines are given at a time; "groups": whole ones; "all": all at once
    margin: float = rounds_module.MARGIN
    longest_first: bool = True
    whole_rounds: bool = False  # a step waits for all that it has asked for
    evaluation: str = "beside"  # the rollouts, or "after" them, a tail for each number of samples, or "none"


ARRANGEMENTS = (
    Arrangement(name="dealt out, no margin, evaluation after", places="all", margin=0.0, longest_first=False,
                evaluation="after", whole_rounds=True),
    Arrangement(name="one queue by groups, evaluation after", places="groups", longest_first=False, evaluation="after",
                whole_rounds=True),
    Arrangement(name="whole rounds, first epoch", whole_rounds=True),
    Arrangement(name="whole rounds, lengths known", pool=2500, whole_rounds=True),
    Arrangement(name='tail = "wait", first epoch'),
    Arrangement(name='tail = "wait", lengths known', pool=2500),
    Arrangement(name='tail = "wait", first epoch, no evaluation', evaluation="none"),
    Arrangement(name='tail = "wait", lengths known, no evaluation', pool=2500, evaluation="none"),
    Arrangement(name='tail = "drop", first epoch', tail="drop"),
    Arrangement(name='tail = "drop", lengths known', tail="drop", pool=2500),
    Arrangement(name='tail = "keep", first epoch', tail="keep"),
    Arrangement(name='tail = "keep", lengths known', tail="keep", pool=2500),
)  # fmt: skip


class StreamByGroups(RequestStream):
    """As it was before: a group holds its places until it is whole."""

    def _hand_out(self, names: Sequence[str]) -> dict[str, list[Request]]:
        for name, asked in self._asked.items():
            self._places[name].taken, self._places[name]._is_full = (
                sum(r.sampling.group_size for r in asked.values()),
                False,
            )
        return super()._hand_out(names)


def play(arrangement: Arrangement, steps: int, seed: int = 1) -> dict[str, float]:
    """Means of a step's rollouts, its share of the evaluations included. Steps whose prompts are new are left out if
    they come again."""
    plan = recipe_plan()
    cluster = VirtualFleet(plan, Answers(plan.config, arrangement.share), plan.config.rollout.engines)
    with cluster.clock(), mock.patch.object(rounds_module, "MARGIN", arrangement.margin):
        return _play(cluster, plan.config, arrangement, steps, seed)


def _play(cluster: VirtualFleet, config: Config, a: Arrangement, steps: int, seed: int) -> dict[str, float]:
    queue = GroupQueue(groups_per_step=config.train.groups_per_step, max_staleness=0, num_steps=steps + 1,
                       max_rounds=config.rollout.max_sampling_rounds, tail=a.tail)  # fmt: skip
    queue.share = MixedShare.known(a.share, round(config.train.groups_per_step / a.share))
    kind = StreamByGroups if a.places == "groups" else RequestStream
    at_once = None if a.places == "all" else config.rollout.max_concurrent
    stream = kind(cluster, "rollouts", answers_at_once=at_once, timeout_s=1e9)
    expected, prompts, seen = ExpectedTokens(), prompts_of(a.pool, seed), []
    for step in range(1, steps + 1):
        begun, evaluates = cluster.now, a.evaluation != "none" and step % config.train.evaluate_every == 0
        beside = requests_to(held_out(), config) if evaluates and a.evaluation == "beside" else []
        stream.submit(beside)
        found, missing, asked, whole = None, len(beside), 0, {}
        while found is None:
            if count := queue.num_missing():
                sampling = sampling_of(config, seed=1000 * step + queue.round)
                requests = queue.begin([next(prompts) for _ in range(count)], sampling)
                asked += count
                key = (lambda r: -expected.of(r.prompt)) if a.longest_first else (lambda r: r.request_id)
                stream.submit(sorted(requests, key=key))
            for request_id, group in stream.poll(0.02):
                missing -= request_id < 0
                if request_id >= 0:
                    queue.grade(request_id, group)
                    whole[request_id] = (cluster.now, group.is_mixed)
            waits = missing or (a.whole_rounds and queue.under_way)
            found = None if waits else queue.take(step)
        taken, late = found
        for group in taken.graded:
            expected.add(group)
        stream.drop(late)
        while stream.has_work and not queue.carries:
            stream.poll(0.02)
        for request_id, group in stream.settle():
            queue.grade(request_id, group)
        if evaluates and a.evaluation == "after":
            for number in {request.sampling.group_size for request in requests_to(held_out(), config)}:
                own = [r for r in requests_to(held_out(), config) if r.sampling.group_size == number]
                list(stream_answers(cluster, own, config.rollout))
        rounds = taken.metrics["rollout/rounds"]
        seen.append((cluster.now - begun, rounds, asked, len(late), exposed(whole, cluster.now, config)))
        queue.trained()
        for engine in cluster.engines.values():
            engine.sleep()
            engine.version = step
        queue.synced(step, stream.begun, restarts=False)
    known = seen[2 + 2 * (a.pool < 10**6) :]
    seconds, rounds, asked, cut, unhidden = np.mean(known, axis=0)
    preempted = sum(engine.preempted for engine in cluster.engines.values()) / steps
    return {"seconds": seconds, "rounds": rounds, "prompts": asked, "cut": cut, "preempted": preempted,
            "unhidden": unhidden}  # fmt: skip


def exposed(whole: dict[int, tuple[float, bool]], end: float, config: Config) -> float:
    """Seconds of log-probs left when the rollouts end, if each update's are computed as soon as it is known: when all
    prompts up to its last group have been answered and graded. Its microbatches are the same ones, so the numbers are.
    """
    plan, size = recipe_plan(), config.train.groups_per_step // config.train.updates_per_step
    each = next(s.seconds for s in plan.stages if s.name == "log-prob") / config.train.updates_per_step
    known = free = mixed = 0.0
    for _, (at, is_mixed) in sorted(whole.items()):
        known, mixed = max(known, at), mixed + is_mixed
        if is_mixed and mixed % size == 0 and mixed <= config.train.groups_per_step:
            free = max(free, known) + each
    return max(free - end, 0.0)


def sampling_of(config: Config, seed: int) -> Sampling:
    return Sampling(group_size=config.rollout.group_size, temperature=1.0, seed=seed,
                    max_answer_tokens=config.rollout.max_answer_tokens)  # fmt: skip


def prompts_of(pool: int, seed: int) -> Iterator[Prompt]:
    rng = np.random.default_rng(seed)
    while True:
        for number in rng.permutation(pool) if pool < 10**6 else range(pool):
            yield _prompt(f"train/{number}", int(number), 100 + int(number) * 7919 % 200)


@cache
def held_out() -> tuple[Prompt, ...]:
    names = [f"{name}/{i}" for name, count in BENCHMARKS.items() for i in range(count)]
    return tuple(_prompt(name, 10**7 + i, 200) for i, name in enumerate(names))


def _prompt(name: str, number: int, tokens: int) -> Prompt:
    return Prompt(
        prompt_id=name, text="", token_ids_P=zeros(np.int32)[:tokens], ground_truth=str(number), data_source=""
    )


def best(share: float) -> dict[str, float]:
    """Seconds in which engines that are always full would sample the least that a step needs, and an evaluation's share
    with it: no round's end, no prompt too many, work spread evenly."""
    plan = recipe_plan()
    config = plan.config
    engine = VirtualEngine(plan, Answers(config, share))
    requests = queue_requests(config, 300)
    engine.advance(requests, [], 0.0)
    marks = []
    for _ in range(2):
        engine.advance([], [], 400.0)
        marks.append((engine.now, engine.sampled))
    rate = (marks[1][1] - marks[0][1]) / (marks[1][0] - marks[0][0])
    tokens = float(np.mean([engine.answers.lengths(r).sum() for r in queue_requests(config, 4000)]))
    rollouts = config.train.groups_per_step / share * tokens / config.rollout.engines / rate
    evaluation = sum(engine.answers.lengths(r).sum() for r in requests_to(held_out(), config))
    evaluation = evaluation / config.rollout.engines / rate / config.train.evaluate_every
    return {"rollouts": rollouts, "evaluation": float(evaluation), "tokens_per_s": rate}


def balanced() -> float:
    """Seconds of one round of the prompts that a step needs in the mean, no evaluation in it, in which every engine has
    its share of all lengths, and its own tail."""
    plan = recipe_plan()
    needed = replace(plan.workload.rounds, first=round(plan.config.train.groups_per_step / plan.workload.mixed_share))
    work = replace(plan.workload, rounds=needed)
    return rollout_round(plan.config, work, plan.engine, plan.machine, plan.memory.places).seconds


def queue_requests(config: Config, count: int) -> list[Request]:
    prompts = prompts_of(10**6, 0)
    return requests_of([next(prompts) for _ in range(count)], sampling_of(config, seed=7))


def print_steps(steps: int) -> None:
    """The table of the results page."""
    plan, at_best = recipe_plan(), best(0.5)
    stages = {stage.name: stage.seconds for stage in plan.stages}
    rest = sum(seconds for name, seconds in stages.items() if name not in ("rollout", "verdict"))
    bound, ideal = rest + at_best["rollouts"] + at_best["evaluation"], rest + balanced()
    print(f"planned stages: {stages}; at best {at_best}; bound {bound:.0f} s, ideal {ideal:.0f} s")
    for arrangement in ARRANGEMENTS:
        found = play(arrangement, steps)
        step = rest + found["seconds"]
        names = ("prompts", "cut", "preempted", *(() if arrangement.tail == "keep" else ("unhidden",)))
        others = " | ".join(f"{found[name]:.0f}" for name in names)
        print(
            f"| {arrangement.name} | {found['seconds']:.0f} | {step:.0f} | {step / ideal:.2f} | {step / bound:.2f} "
            f"| {found['rounds']:.2f} | {others} |",
            flush=True,
        )  # fmt: skip


def print_rounds(steps: int, groups: int) -> None:
    """The queue alone: by share.

    Args:
        groups: mixed ones a step.
    """
    from tests.unit.groups.test_rounds import rounds_of

    for share in SHARES:
        rounds, prompts = rounds_of(share, groups, steps)
        print(
            f"| {share} | {np.mean(rounds):.3f} | {max(rounds)} | {prompts:.0f} "
            f"| {prompts * share / groups - 1:+.1%} |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rounds", "steps"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--groups", type=int, default=512, help="of rounds: mixed groups a step")
    arguments = parser.parse_args(argv)
    steps = DEFAULT_STEPS[arguments.what] if arguments.steps is None else arguments.steps
    if arguments.what == "rounds":
        for name, number in (("--steps", steps), ("--groups", arguments.groups)):
            if number < 1:
                parser.error(f"{name} {number}; give at least 1")
        print_rounds(steps, arguments.groups)
    else:
        if steps < 5:
            parser.error(f"--steps {steps}: the first four are of an engine that knows no lengths; 5 or more")
        print_steps(steps)


if __name__ == "__main__":
    main()
