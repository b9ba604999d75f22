"""Where a run's groups come from: keeps the engines at work and grades their answers, in threads of its own.

    prompts --> requests on the engines --> answers --> verdicts --> GroupQueue --> take(step), by the trainer
                (cluster/stream.py)                    (verdict/)   (queue.py)

A run that may not be ahead (max_staleness = 0) asks for a round of prompts when a step begins, the longest known
first, and with it for what somebody else wants of the same weights (`ask_beside`); one that may goes on while the actor
trains. Answers are graded as they come, beside the sampling. What the source knows between steps goes into the
checkpoint, graded groups and requests under way with it. Used by train.py.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Condition, Thread
from typing import Any

from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.stream import RequestStream, at_once
from megatron_nft.config import Config
from megatron_nft.data.prompts import PromptStream
from megatron_nft.groups.file import fitting
from megatron_nft.groups.lengths import ExpectedTokens
from megatron_nft.groups.queue import GroupQueue, Kept, Taken
from megatron_nft.groups.readable import ReadableAnswers
from megatron_nft.groups.seeds import sampling_seed
from megatron_nft.nft.groups import check_scores, teaches, what_teaches
from megatron_nft.observe.report import Report
from megatron_nft.rollout.api import Request, Sampling
from megatron_nft.types import Prompt, RolloutGroup
from megatron_nft.verdict.judge import Judge

WAIT_S = 0.02
"""Of one look for what engines and graders have done."""
JOIN_S = 10.0
State = tuple[dict[str, Any], tuple[Kept, ...]]
"""What a checkpoint holds of a source: plain values, and graded groups."""


class GroupSource:
    """A run's source of mixed groups, ahead of the trainer by up to `max_staleness` steps.

    All methods are the trainer's. It begins paused. An error in its threads is raised by the next `take` or `pause`.
    """

    def __init__(self, config: Config, prompts: PromptStream, fleet: Fleet, judge: Judge, max_staleness: int) -> None:
        rollout = config.rollout
        self._config, self._prompts, self._fleet, self._judge = config, prompts, fleet, judge
        self._is_ahead = max_staleness > 0
        self._queue = GroupQueue(
            groups_per_step=config.train.groups_per_step,
            max_staleness=max_staleness,
            max_rounds=rollout.max_sampling_rounds,
            num_steps=config.train.steps,
            tail=rollout.tail,
            teaches=partial(teaches, algorithm=config.algorithm),
            needs=what_teaches(config.algorithm),
        )
        # What goes over syncs: one engine too is given little at a time, and the rest is sampled by newer weights.
        places = at_once(rollout, max(len(fleet.names), 2) if self._queue.carries else len(fleet.names))
        self._stream = RequestStream(fleet, "rollouts", answers_at_once=places, timeout_s=rollout.timeout_s)
        self._expected = ExpectedTokens()
        self._beside: dict[int, Request] = {}  # somebody else's requests that are not answered yet
        self._beside_new: list[Request] = []  # those of them that the stream has not got yet
        self._beside_answers: dict[int, RolloutGroup] = {}
        self._readable = ReadableAnswers(config.verdict, config.train.groups_per_step)
        self._warnings: list[str] = []  # for the trainer to say
        self._ungraded: list[tuple[int, RolloutGroup]] = []
        self._grader = ThreadPoolExecutor(1, "grader")
        self._grading: tuple[list[int], Future[list[RolloutGroup]]] | None = None
        self._changed = Condition()  # guards all of the above but the stream, which is the thread's unless it is paused
        self._pausing, self._paused, self._closing = True, True, False
        self._is_sampling = False  # engines are at work on this round, or about to be
        self._late: list[int] = []  # requests under way that the engines may forget
        self._has_work = False  # the stream, when the thread looked last
        self._error: BaseException | None = None
        self._resumed_at = self._unpaused_s = self._busy_s = 0.0
        self._at_rest: State = self._kept()
        self._thread = Thread(target=self._run, name="group source", daemon=True)
        self._thread.start()

    # --- the trainer's verbs

    def begin(self, step: int, state: dict[str, Any], kept: tuple[Kept, ...] = ()) -> None:
        """Goes on where a saved source stopped, after this step; requests that were under way begin again, with their
        seeds. To be called while it is paused.

        Raises:
            DataError: the state belongs to other prompts.
        """
        with self._changed:
            assert self._paused, "pause first"
            self._prompts.load_state_dict(state["prompts"])
            self._stream.drop_all()
            self._stream.dropped_tokens = []
            self._ungraded, self._grading, self._late = [], None, []
            self._readable.forget()
            self._beside, self._beside_new, self._beside_answers = {}, [], {}
            self._expected.restore(state.get("expected_tokens", {}))
            empty = {"num_taken": step, "version": step, "round": 0, "next_id": 0, "under_way": []}
            queue = state.get("queue") or empty | {"mixed_share": state["mixed_share"]}
            prompts = self.prompts
            requests = [
                Request(request_id=key, prompt=prompts[name], seed_id=seed_id, sampling=self._sampling(seed))
                for key, name, seed_id, seed in queue["under_way"]
            ]
            self._queue.restore(queue, [fitting(item, self._config.replays_engine) for item in kept], requests)
            self._submit(requests)
            self._at_rest = self._kept()

    def ask_beside(self, requests: Sequence[Request]) -> dict[int, RolloutGroup]:
        """Has requests answered beside those of the next step, whose weights are the same: to be called while it is
        paused, before `resume`, by a run that is not ahead.

        Args:
            requests: with ids below 0.

        Returns:
            Their groups, by id: all of them once `take` has returned groups.
        """
        with self._changed:
            assert self._paused and not self._is_ahead, "pause first"
            self._beside = {request.request_id: request for request in requests}
            self._beside_new, self._beside_answers = list(requests), {}
            return self._beside_answers

    def take(self, step: int, report: Report) -> Taken | None:
        """Waits for a step's groups, in stages that the report shows. None: an engine has died and started again;
        pause, sync the weights, resume, and call again.

        Raises:
            NoMixedGroups: too few of the sampled groups had right and wrong answers, or nearly no answer can be read.
            ClusterError: engines don't answer, or died too often.
        """
        while True:
            stage = self._stage()
            with report.stage(stage, unit="groups") as progress, self._changed:
                while self._stage() == stage:
                    found = None if self._beside or self._error else self._queue.take(step)
                    if found is not None and self._queue.takes_in_turn:
                        self._warnings += self._readable.add_in_turn(found[0].graded, are_all=True)
                    while self._warnings:
                        report.announce(f"warning: {self._warnings.pop(0)}")
                    self._raise_error()
                    if found is not None:
                        return self._hand_over(*found)
                    if self._fleet.wants_weights:
                        return None
                    progress.update(*self._done())
                    self._changed.wait(1.0)

    def trained(self) -> None:
        """The groups that were taken last have been trained on."""
        with self._changed:
            self._queue.trained()
            self._at_rest = self._kept()

    def pause(self) -> None:
        """Waits until no engine works: requests under way stand still between two decode steps."""
        with self._changed:
            if not self._pausing:
                self._pausing = True
                self._unpaused_s += time.perf_counter() - self._resumed_at
                self._changed.notify_all()
            while not self._paused:
                self._raise_error()
                self._changed.wait(1.0)
            self._raise_error()

    def resume(self, version: int) -> None:
        """Goes on, on engines that hold this policy. Fine if it is at work for it already."""
        with self._changed:
            if not self._pausing:
                return
            self._stream.take_back_lost()
            answered = {key for key, _ in self._ungraded} | set(self._grading[0] if self._grading else ())
            restarts = self._config.rollout.on_sync == "restart"
            self._queue.synced(version, self._stream.begun, restarts=restarts, answered=answered)
            self._resumed_at = time.perf_counter()
            self._pausing = self._paused = False
            self._is_sampling = True
            self._changed.notify_all()

    def state(self) -> State:
        """What a checkpoint must hold so that nothing graded is lost and nothing is trained on twice. Without staleness
        a step is sampled again from its beginning."""
        with self._changed:
            return self._kept() if self._queue.carries else self._at_rest

    def close(self) -> None:
        """Ends the threads; requests under way stay where they are."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(JOIN_S)
        self._grader.shutdown(wait=False, cancel_futures=True)

    @property
    def prompts(self) -> dict[str, Prompt]:
        """All of the run's, by id."""
        return {prompt.prompt_id: prompt for prompt in self._prompts.prompts}

    # --- what they are made of; under the lock

    def _stage(self) -> str:
        """What the trainer waits for."""
        if self._is_ahead:
            return "wait"
        return "rollout" if self._is_sampling else "verdict"

    def _done(self) -> tuple[int, int]:
        """Groups that are there, of those that are waited for."""
        if self._is_ahead:
            wanted = self._config.train.groups_per_step
            return min(self._queue.num_ready, wanted), wanted
        total, sampled = self._queue.num_asked, self._stream.num_requests - len(self._beside)
        missing = sampled if self._is_sampling else len(self._queue.under_way)
        return max(total - missing, 0), total  # what a step before has left under way is not of this one's

    def _hand_over(self, taken: Taken, late: list[int]) -> Taken:
        self._late += late
        self._changed.notify_all()
        while late and (self._late or self._has_work) and not self._queue.carries:
            self._raise_error()
            self._changed.wait(1.0)  # engines that are put to sleep next must have nothing under way
        for group in taken.graded:
            self._expected.add(group)
        lengths, self._stream.dropped_tokens = self._stream.dropped_tokens, []
        is_cut = lengths and not self._queue.takes_in_turn
        more = {"rollout/cut_tokens_mean": sum(lengths) / len(lengths)} if is_cut else {}
        return replace(taken, metrics=taken.metrics | more | (self._idle() if self._is_ahead else {}))

    def _idle(self) -> dict[str, float]:
        """Seconds since the last time in which engines had nothing to do; syncs and evaluations are not counted."""
        now, all_busy_s = time.perf_counter(), self._stream.busy_s
        unpaused_s = self._unpaused_s + now - self._resumed_at
        busy_s = (all_busy_s - self._busy_s) / len(self._fleet.names)
        self._resumed_at, self._unpaused_s, self._busy_s = now, 0.0, all_busy_s
        return {"async/engine_idle_s": max(unpaused_s - busy_s, 0.0)}

    def _kept(self) -> State:
        state = {
            "prompts": self._prompts.state_dict(),
            "queue": self._queue.state_dict(),
            "expected_tokens": self._expected.state_dict(),
        }
        return state, tuple(self._queue.kept())

    def _sampling(self, seed: int) -> Sampling:
        rollout = self._config.rollout
        return Sampling(
            group_size=rollout.group_size,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_answer_tokens=rollout.max_answer_tokens,
            seed=seed,
            with_experts=self._config.replays_engine,
            top_logprobs=rollout.top_logprobs,
        )

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # --- the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _turn(self) -> bool:
        """One look at engines and graders; False once closed."""
        finished = self._stream.settle() if self._pausing else self._stream.poll(WAIT_S)
        with self._changed:
            self._sort_out(finished)
            self._grade()
            self._stream.drop(self._late)
            self._late = []
            if self._closing:
                return False
            if not self._pausing:
                self._ask()
                self._has_work = self._stream.has_work
                if not self._has_work:
                    self._changed.notify_all()
                    self._changed.wait(1.0)  # the queue is full, or graders are at work
            elif not self._stream.is_working:
                self._paused = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing or not self._paused)  # even if it is to pause again
        return True

    def _ask(self) -> None:
        self._stream.submit(self._beside_new)  # in one go with the round: side by side on the engines, in every run
        self._beside_new = []
        if self._queue.takes_in_turn and self._queue.is_short:
            self._warnings += self._readable.add_in_turn(self._queue.untold)
        if count := self._queue.num_missing():
            seed = sampling_seed(self._config.run.seed, self._queue.version + 1, self._queue.round)
            self._submit(self._queue.begin(self._prompts.take(count), self._sampling(seed)))
        if self._is_sampling != (self._stream.num_requests > 0):
            self._is_sampling = not self._is_sampling
            self._changed.notify_all()

    def _submit(self, requests: Sequence[Request]) -> None:
        """Prompts without known answers first, in their order; of the others the longest expected first: what is begun
        late should end soon."""
        self._stream.submit(sorted(requests, key=lambda request: -self._expected.of(request.prompt)))

    def _sort_out(self, finished: Sequence[tuple[int, RolloutGroup]]) -> None:
        """Answers that have come: the run's own, and those beside."""
        for request_id, group in finished:
            if self._beside.pop(request_id, None) is not None:
                self._beside_answers[request_id] = group
            else:
                self._ungraded.append((request_id, group))

    def _grade(self) -> None:
        """Takes verdicts in, and sends what is ungraded to the graders."""
        if self._grading is not None and self._grading[1].done():
            request_ids, future = self._grading
            self._grading = None
            judged = future.result()
            check_scores(judged, self._config.algorithm)
            if not self._queue.takes_in_turn:
                self._warnings += self._readable.add(judged)
            for request_id, group in zip(request_ids, judged, strict=True):
                self._queue.grade(request_id, group)
            self._changed.notify_all()
        if self._grading is None and self._ungraded:
            request_ids, groups = zip(*self._ungraded, strict=True)
            self._ungraded = []
            future = self._grader.submit(self._judge.judge, groups)
            future.add_done_callback(self._wake)
            self._grading = (list(request_ids), future)

    def _wake(self, _: Any) -> None:
        with self._changed:
            self._changed.notify_all()
