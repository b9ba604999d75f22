"""Engines that answer when a test lets them, in this process: a fleet for the real source, stream and queue."""

import time
from types import SimpleNamespace

import numpy as np

from megatron_nft.cluster import stream
from megatron_nft.rollout.api import Load
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict

CALL_S = 0.002


class Answer:
    """Ray's reference to one."""

    def __init__(self, groups, load):
        self.groups, self.load = groups, load


class Engines:
    """Named engines; what each was given, in order, and what it has under way.

    Args:
        may_end: of a request, whether its answers are whole when it is asked; it then has been long enough under way.
        tokens: of a request, the length of its answers.
    """

    def __init__(self, count=1, may_end=lambda request: True, tokens=lambda request: 4):
        self.names = [f"engine {number}" for number in range(count)]
        self.given = {name: [] for name in self.names}  # a list of ids each call that brought any
        self.under_way = {name: {} for name in self.names}
        self.seen = {}  # requests of all engines, by id
        self.may_end, self.tokens, self.version = may_end, tokens, 0
        self.wants_weights = self.is_empty = False
        self._handles = {name: SimpleNamespace(call=SimpleNamespace(remote=self._remote(name))) for name in self.names}

    def _remote(self, name):
        def advance(verb, arguments, timeout_s):
            assert verb == "advance"
            _, requests, dropped, _ = arguments
            mine = self.under_way[name]
            lengths = [1 for key in dropped if mine.pop(key, None) for _ in range(2)]
            if requests:
                self.given[name].append([request.request_id for request in requests])
            new = {request.request_id: request for request in requests}
            mine |= new
            self.seen |= new
            ended = [request for request in mine.values() if self.may_end(request)]
            for request in ended:
                del mine[request.request_id]
            answers = sum(request.sampling.group_size for request in mine.values())
            load = Load(seconds=CALL_S, running=answers, dropped_tokens=tuple(lengths))
            return Answer([(r.request_id, self.answer(r)) for r in ended], load)

        return advance

    def answer(self, request):
        tokens = self.tokens(request)
        return RolloutGroup(
            prompt=request.prompt,
            rollouts=tuple(
                Rollout(text="", token_ids_A=np.zeros(tokens, np.int32), truncated=False, policy_version=self.version,
                        engine_logprobs_A=np.zeros(tokens, np.float32))
                for _ in range(request.sampling.group_size)
            ),
        )  # fmt: skip

    def handle(self, name):
        return self._handles[name]

    def is_ready(self, name):
        return True


def without_ray(monkeypatch):
    """The stream's calls are answered at once."""

    def wait(refs, num_returns=1, timeout=None):
        time.sleep(CALL_S)
        return refs[:num_returns], refs[num_returns:]

    monkeypatch.setattr(stream, "ray", SimpleNamespace(wait=wait, get=lambda ref: (ref.groups, ref.load)))


class Judge:
    """Finds every other answer right, and remembers which prompts it was shown."""

    def __init__(self):
        self.seen = []

    def judge(self, groups):
        self.seen += [group.prompt.prompt_id for group in groups]
        kinds = [tuple(Verdict(kind=("right", "wrong")[i % 2]) for i in range(len(g.rollouts))) for g in groups]
        return [
            RolloutGroup(prompt=g.prompt, rollouts=g.rollouts, verdicts=verdicts)
            for g, verdicts in zip(groups, kinds, strict=True)
        ]


def prompts_of(*lengths):
    """Prompts with so many tokens: p/0, p/1 ..."""
    return tuple(
        Prompt(prompt_id=f"p/{i}", text="", token_ids_P=np.zeros(n, np.int32), ground_truth="1", data_source="toy")
        for i, n in enumerate(lengths)
    )
