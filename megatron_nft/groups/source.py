"""The producer of asynchronous rollouts: keeps the engines at work and grades their answers, in threads of its own.

    prompts --> requests on the engines --> answers --> verdicts --> GroupQueue --> take(step), by the trainer
                (cluster/stream.py)                    (verdict/)   (group_queue.py)

It stands in GroupSampler's place: the trainer (train_async.py) takes a step's groups, and pauses it around a weight
sync. What it knows between steps goes into the checkpoint, graded groups and requests under way with it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Thread
from typing import Any

from megatron_nft.cluster.stream import RequestStream
from megatron_nft.cluster.workers import EngineGroup
from megatron_nft.config import Config
from megatron_nft.data.prompts import PromptStream
from megatron_nft.groups.queue import GroupQueue, Kept, Taken
from megatron_nft.nft.groups import check_scores
from megatron_nft.rollout.api import Request, Sampling, sampling_seed
from megatron_nft.types import Prompt, RolloutGroup
from megatron_nft.verdict.judge import Judge

WAIT_S = 0.02
"""Of one look for what engines and graders have done."""
JOIN_S = 10.0


class Producer:
    """A run's source of mixed groups, ahead of the trainer by up to rollout.max_staleness steps.

    All methods are the trainer's. An error of the producer is raised by the next `take` or `pause`.
    """

    def __init__(self, config: Config, prompts: PromptStream, engines: EngineGroup, judge: Judge) -> None:
        rollout = config.rollout
        self._config, self._prompts, self._judge = config, prompts, judge
        self._queue = GroupQueue(
            groups_per_step=config.train.groups_per_step,
            max_staleness=rollout.max_staleness,
            max_rounds=rollout.max_sampling_rounds,
            num_steps=config.train.steps,
        )
        # One more than an engine works on, so that none waits for the next; a whole round if nothing may be overtaken.
        room = -(-rollout.max_concurrent // rollout.group_size) + 1 if rollout.max_staleness else None
        self._stream = RequestStream(engines, requests_per_engine=room, timeout_s=rollout.timeout_s)
        self._num_engines = engines.num_engines
        self._ungraded: list[tuple[int, RolloutGroup]] = []
        self._grader = ThreadPoolExecutor(1, "grader")
        self._grading: tuple[list[int], Future[list[RolloutGroup]]] | None = None
        self._changed = Condition()  # guards all of the above but the stream, which is the thread's unless it is paused
        self._pausing, self._paused, self._closing = True, True, False
        self._late: list[int] = []  # requests under way that the engines may forget
        self._error: BaseException | None = None
        self._resumed_at = self._unpaused_s = self._busy_s = 0.0
        self._thread = Thread(target=self._run, name="producer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the threads; requests under way stay where they are."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(JOIN_S)
        self._grader.shutdown(wait=False, cancel_futures=True)

    def take(self, step: int, on_progress: Callable[[int, int], None]) -> Taken | None:
        """Waits for a step's groups. None: an engine has died and started again; sync the weights, and call again.

        Raises:
            NoMixedGroups: too few of the sampled groups had right and wrong answers.
            ClusterError: engines don't answer, or died too often.
        """
        wanted = self._config.train.groups_per_step
        with self._changed:
            while True:
                self._raise_error()
                if (found := self._queue.take(step)) is not None:
                    taken, late = found
                    self._late += late
                    self._changed.notify_all()
                    return Taken(groups=taken.groups, graded=taken.graded, metrics=taken.metrics | self._idle())
                if self._stream.needs_weights:
                    return None
                on_progress(min(self._queue.num_ready, wanted), wanted)
                self._changed.wait(1.0)

    def _idle(self) -> dict[str, float]:
        """Seconds since the last time in which engines had nothing to do; syncs and evaluations are not counted."""
        now, all_busy_s = time.perf_counter(), self._stream.busy_s
        unpaused_s = self._unpaused_s + now - self._resumed_at
        busy_s = (all_busy_s - self._busy_s) / self._num_engines
        self._resumed_at, self._unpaused_s, self._busy_s = now, 0.0, all_busy_s
        return {"async/engine_idle_s": max(unpaused_s - busy_s, 0.0)}

    def trained(self) -> None:
        """The groups that were taken last have been trained on."""
        with self._changed:
            self._queue.trained()

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

    def wait_for_engines(self) -> None:
        """Waits until engines that were started again can take weights. To be called while paused."""
        self._stream.wait_for_starts()

    def abandon(self) -> None:
        """Drops all requests under way, and engines that are being started. To be called while paused."""
        with self._changed:
            self._stream.abandon()
            self._ungraded, self._grading, self._late = [], None, []

    def resume(self, version: int) -> None:
        """Goes on, after a weight sync that has brought the engines this policy."""
        with self._changed:
            begun = self._stream.begun
            self._stream.synced()
            self._queue.synced(version, begun, restarts=self._config.rollout.on_sync == "restart")
            self._resumed_at = time.perf_counter()
            self._pausing = self._paused = False
            self._changed.notify_all()

    def kept(self) -> tuple[dict[str, Any], tuple[Kept, ...]]:
        """What a checkpoint must hold so that nothing graded is lost and nothing is trained on twice."""
        with self._changed:
            state = {"prompts": self._prompts.state_dict(), "queue": self._queue.state_dict()}
            return state | {"mixed_share": self._queue.mixed_share}, tuple(self._queue.kept())

    def restore(self, step: int, state: dict[str, Any], kept: tuple[Kept, ...]) -> None:
        """Goes on where a saved producer stopped; requests that were under way begin again, with their seeds. To be
        called while it is paused.

        Args:
            state: of `kept`, or of a GroupSampler after this step.
        """
        with self._changed:
            assert self._paused, "pause first"
            self._prompts.load_state_dict(state["prompts"])
            self.abandon()
            share = state["mixed_share"]
            empty = {"num_taken": step, "version": step, "round": 0, "next_id": 0, "mixed_share": share}
            queue = state.get("queue", {**empty, "under_way": []})
            prompts = self.prompts
            requests = [
                Request(request_id=key, prompt=prompts[name], seed_id=seed_id, sampling=self._sampling(seed))
                for key, name, seed_id, seed in queue["under_way"]
            ]
            self._queue.restore(queue, kept, requests)
            self._stream.submit(requests)

    @property
    def prompts(self) -> dict[str, Prompt]:
        """All of the run's, by id."""
        return {prompt.prompt_id: prompt for prompt in self._prompts.prompts}

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

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
            self._ungraded += finished
            self._grade()
            self._stream.drop(self._late)
            self._late = []
            if self._closing:
                return False
            if not self._pausing:
                self._ask()
                if not self._stream.has_work:
                    self._changed.wait(1.0)  # the queue is full, or graders are at work
            elif not self._stream.is_working:
                self._paused = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing or not self._pausing)
        return True

    def _ask(self) -> None:
        if count := self._queue.num_missing():
            seed = sampling_seed(self._config.run.seed, self._queue.version + 1, self._queue.round)
            self._stream.submit(self._queue.begin(self._prompts.take(count), self._sampling(seed)))

    def _sampling(self, seed: int) -> Sampling:
        rollout = self._config.rollout
        return Sampling(
            group_size=rollout.group_size,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_answer_tokens=rollout.max_answer_tokens,
            seed=seed,
        )

    def _grade(self) -> None:
        """Takes verdicts in, and sends what is ungraded to the graders."""
        if self._grading is not None and self._grading[1].done():
            request_ids, future = self._grading
            self._grading = None
            judged = future.result()
            check_scores(judged, self._config.algorithm)
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
