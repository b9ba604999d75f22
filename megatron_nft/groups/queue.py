"""Which groups are to be sampled, which are ready to be trained on, and which have become too old: the source's
bookkeeping, without threads, engines or clocks.

A policy_version is the number of steps trained before. Step s trains policy s - 1, on tokens that policy v sampled:
their staleness is (s - 1) - v, at most max_staleness. So no more groups are ready or expected (by the share of sampled
ones that were mixed) than steps can take until then, and what others overtake until it is too old is dropped. That
would favour short answers: so a step waits for one more group that is in time in place of each that it would drop,
but never for those alone.

With max_staleness = 0, a synchronous run, sampling goes in rounds: a round lasts as long as its longest answer, so that
a second one of a few prompts costs nearly as much as the first, and the first asks for as many as will bring enough
mixed groups in 98 of 100 steps. The tail of a round, once enough groups are mixed, goes as rollout.tail says. "wait": a
step takes the first mixed groups in the order in which prompts were asked for, and begins as soon as no earlier prompt
is under way, so that which ones it takes depends on nothing else; those after them are dropped, since the next step's
policy is another. "drop": it takes the first ones that get ready, which favours short answers. "keep": likewise, and
what is under way goes on for the next step, one sync old.

Called by source.py, under its lock.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from math import ceil
from operator import attrgetter
from typing import Any

from megatron_nft.config.rollout import Tail
from megatron_nft.groups.outcome import outcome, remedy
from megatron_nft.groups.share import MixedShare, largest_share
from megatron_nft.groups.staleness import oldest_version, staleness_metrics
from megatron_nft.plan.rounds import asked_for, most_prompts
from megatron_nft.rollout.api import Request, Sampling, requests_of
from megatron_nft.types import Prompt, RolloutGroup

GROWTH = 4
"""Where all that a step may still ask would hardly do by the share, a round is so many times what that counts."""


class NoMixedGroups(RuntimeError):
    """Sampling did not bring enough groups with right and wrong answers."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a step gets."""

    groups: tuple[RolloutGroup, ...]  # to train on
    graded: tuple[RolloutGroup, ...]  # all that were graded since the step before, mixed or not
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A graded group in a checkpoint."""

    request_id: int
    group: RolloutGroup
    is_ready: bool  # to be trained on
    is_reported: bool  # a step's metrics have counted it


@dataclass
class _Counts:
    """Since the last `take`."""

    rounds: int = 0
    asked: int = 0
    graded: int = 0
    mixed: int = 0
    dropped: int = 0
    restarted: int = 0


class GroupQueue:
    """Requests under way and graded groups, between the engines and the trainer.

    Args:
        teaches: whether a graded group is of use to the method. "Mixed" stands for such groups here.
        needs: what it has then, in words.

    Attributes:
        version: of the policy that the engines hold.
        num_taken: steps that have got their groups.
        round: rounds of prompts asked for under this version; tells their seeds apart.
        share: of mixed groups, as far as is known.
        under_way: requests that are not graded yet, by id.
    """

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        max_rounds: int,
        num_steps: int,
        tail: Tail = "wait",
        teaches: Callable[[RolloutGroup], bool] = attrgetter("is_mixed"),
        needs: str = "right and wrong answers",
    ) -> None:
        self.groups_per_step, self.max_staleness, self.tail = groups_per_step, max_staleness, tail
        self._oldest_allowed = max(max_staleness, int(tail == "keep"))  # staleness of a group that is trained on
        self.max_rounds, self.num_steps, self._teaches, self._needs = max_rounds, num_steps, teaches, needs
        self.version = self.num_taken = self.round = self._next_id = 0
        self.share = self._share_before = MixedShare()
        self.under_way: dict[int, Request] = {}
        self._versions: dict[int, int] = {}  # of requests under way: of the policy that samples the first token
        self._ready: dict[int, RolloutGroup] = {}
        self._unreported: dict[int, RolloutGroup] = {}
        self._untrained: list[Kept] = []  # what the last `take` took out, until `trained`
        self._counts = _Counts()

    @property
    def num_ready(self) -> int:
        """Mixed groups that wait for a step."""
        return len(self._ready)

    @property
    def untold(self) -> list[RolloutGroup]:
        """Graded since the last `take`, in the order of their prompts."""
        return [self._unreported[key] for key in sorted(self._unreported)]

    @property
    def is_short(self) -> bool:
        """Nothing is under way, and too few groups are ready."""
        return not self.under_way and len(self._ready) < self.groups_per_step

    @property
    def carries(self) -> bool:
        """What is ready or under way at a weight sync is of use to later steps."""
        return self._oldest_allowed > 0

    @property
    def num_asked(self) -> int:
        """Prompts asked for since the last `take`."""
        return self._counts.asked

    @property
    def capacity(self) -> int:
        """Mixed groups that may be ready or expected now."""
        last_step = min(self.version + self.max_staleness + 1, self.num_steps)
        return (last_step - self.num_taken) * self.groups_per_step

    def num_missing(self) -> int:
        """Prompts to ask for now.

        Raises:
            NoMixedGroups: as many prompts as rollout.max_sampling_rounds allows have not brought enough mixed groups,
                or would not, as far as the share of mixed ones can tell.
        """
        if self._is_in_round:
            return 0
        room = self.capacity - len(self._ready)
        if room <= 0:
            return 0
        left = max(self._num_allowed() - self._counts.graded, 0)
        if len(self._ready) + left * largest_share(self._counts.mixed, self._counts.graded) < self.groups_per_step:
            if left and self.under_way:
                return 0  # those that are graded are the short ones: it is judged once the others are, too
            raise NoMixedGroups(self._why_none(left))
        share = self.share
        in_rounds = self.max_staleness == 0 and share.of
        wanted = asked_for(room, share.value, share.of) if in_rounds else ceil(room / share.value)
        if share.of and len(self._ready) + left * share.value < 2 * self.groups_per_step:
            left = min(left, GROWTH * share.of)  # they hardly would do: some, to know the share better
        return max(min(wanted, left) - len(self.under_way), 0)

    @property
    def _is_in_round(self) -> bool:
        """Without staleness nothing is asked for while a round may do: nothing at all in it where groups go in turn."""
        if self.max_staleness or not self.under_way:
            return False
        may_do = len(self._ready) + len(self.under_way) >= self.groups_per_step
        return self.takes_in_turn or (may_do and self._counts.asked > 0)

    @property
    def takes_in_turn(self) -> bool:
        """A step takes groups in the order in which their prompts were asked for."""
        return self.max_staleness == 0 and self.tail == "wait"

    def _num_allowed(self) -> int:
        """Prompts that a step may try."""
        return self.max_rounds * most_prompts(self.groups_per_step)

    def _why_none(self, left: int) -> str:
        """And what the answers looked like."""
        in_vain = f", and the {left} more that may be tried would not bring them" if left else ""
        return (
            f"step {self.num_taken + 1}: {len(self._ready)} of {self._counts.graded} groups had {self._needs}, "
            f"train.groups_per_step = {self.groups_per_step} are needed{in_vain} ({outcome(self.untold)}); "
            f"{remedy(self.untold)}, or raise rollout.max_sampling_rounds = {self.max_rounds}"
        )

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Request]:
        """A round of prompts is under way from now on, as these requests."""
        requests = requests_of(prompts, sampling, self._next_id)
        self._next_id += len(requests)
        self.round += 1
        self._counts.rounds += 1
        self._counts.asked += len(requests)
        self._add(requests)
        return requests

    def _add(self, requests: Sequence[Request]) -> None:
        self.under_way |= {request.request_id: request for request in requests}
        self._versions |= {request.request_id: self.version for request in requests}

    def grade(self, request_id: int, group: RolloutGroup) -> None:
        """A request's answers, with their verdicts. It may have been dropped meanwhile."""
        if self.under_way.pop(request_id, None) is None:
            return
        del self._versions[request_id]
        self._unreported[request_id] = group
        counts = self._counts
        counts.graded += 1
        if self._teaches(group):
            counts.mixed += 1
            self._ready[request_id] = group
        if counts.graded >= self.groups_per_step:  # fewer say little
            self.share.count(counts.mixed, counts.graded)

    def take(self, step: int) -> tuple[Taken, list[int]] | None:
        """The groups of a step, the oldest first, and the ids of requests under way that no later step can train on;
        None: too few are ready yet, or too few to drop those."""
        oldest_of_next = step - self._oldest_allowed
        late = [key for key, version in self._versions.items() if version < oldest_of_next]
        in_their_place = min(len(late), len(self.under_way) - len(late)) if step < self.num_steps else 0
        if len(self._ready) < self.groups_per_step + in_their_place:
            return None
        order = sorted(self._ready, key=lambda key: (oldest_version(self._ready[key]), key))
        chosen = order[: self.groups_per_step]
        surplus = len(order) - len(chosen)
        if self.takes_in_turn:
            if min(self.under_way, default=chosen[-1]) < chosen[-1]:
                return None
            order, surplus = chosen, self._forget_after(chosen[-1])
        groups = tuple(self._ready[key] for key in chosen)
        too_old = [key for key in order if oldest_version(self._ready[key]) < oldest_of_next and key not in chosen]
        graded = tuple(self.untold)
        gone = {*chosen, *too_old}
        self._untrained = [kept for kept in self.kept() if kept.request_id in gone or not kept.is_reported]
        for key in gone:
            del self._ready[key]
        for key in late:
            del self.under_way[key], self._versions[key]
        counts, self._counts = self._counts, _Counts()
        self._unreported, self.num_taken = {}, step
        self._share_before, self.share = self.share, MixedShare.known(self.share.value, self.share.of)
        metrics = {"rollout/rounds": counts.rounds, "rollout/groups_surplus": surplus}
        if self.max_staleness == 0 and not self.takes_in_turn:
            metrics["rollout/groups_cut"] = len(late) + len(self.under_way)
        if self.carries:
            metrics |= staleness_metrics(groups, step) | {
                "async/queue_groups": len(self._ready),
                "async/groups_under_way": len(self.under_way),
                "async/groups_dropped": counts.dropped + len(late) + len(too_old),
                "async/groups_restarted": counts.restarted,
            }
        return Taken(groups=groups, graded=graded, metrics=metrics), late

    def _forget_after(self, last: int) -> int:
        """Of what was asked for after a step's last group nothing is told, nor is the share counted on it: how much of
        it has been graded by now is chance.

        Returns:
            How many prompts that are.
        """
        self._unreported = {key: group for key, group in self._unreported.items() if key <= last}
        self._ready = {key: group for key, group in self._ready.items() if key <= last}
        self.share.count(sum(map(self._teaches, self._unreported.values())), len(self._unreported))
        return self._counts.asked - len(self._unreported)

    def trained(self) -> None:
        """The groups that were taken last have been trained on: a checkpoint holds them no more."""
        self._untrained = []

    def synced(self, version: int, begun: Set[int], *, restarts: bool, answered: Set[int] = frozenset()) -> None:
        """The engines hold another policy.

        Args:
            begun: requests under way that an engine had at the sync; the others have no token yet.
            restarts: so have those, now.
            answered: requests whose answers are whole, and not graded yet.
        """
        if version != self.version:
            self.version, self.round = version, 0
        for key in self._versions:
            if key not in answered and (restarts or key not in begun):
                self._versions[key] = version
        if restarts:
            self._counts.restarted += len(begun & self._versions.keys())

    def kept(self) -> list[Kept]:
        """All graded groups that are still to be trained on or reported; those taken for an untrained step, too."""
        now = [
            Kept(request_id=key, group=group, is_ready=key in self._ready, is_reported=key not in self._unreported)
            for key, group in sorted((self._ready | self._unreported).items())
        ]
        untrained = {kept.request_id for kept in self._untrained}
        return self._untrained + [kept for kept in now if kept.request_id not in untrained]

    def state_dict(self) -> dict[str, Any]:
        """Plain values that `restore` needs beside `kept`."""
        return {
            "num_taken": self.num_taken - bool(self._untrained),
            "next_id": self._next_id,
            "round": self.round,
            "version": self.version,
            "share": asdict(self._share_before if self._untrained else self.share),  # that step will be taken again
            "under_way": [
                [request.request_id, request.prompt.prompt_id, request.seed_id, request.sampling.seed]
                for request in self.under_way.values()
            ],
        }

    def restore(self, state: Mapping[str, Any], kept: Sequence[Kept], requests: Sequence[Request]) -> None:
        """Goes on where a saved queue stopped.

        Args:
            requests: those of the state's "under_way"; they begin again from their prompts.
        """
        self.num_taken, self._next_id = state["num_taken"], state["next_id"]
        self.version, self.round = state["version"], state["round"]
        if "share" in state:
            self.share = MixedShare(**state["share"])
        else:  # an older checkpoint
            self.share = MixedShare.known(state["mixed_share"], state.get("share_of", self.groups_per_step))
        self.under_way, self._versions, self._untrained, self._counts = {}, {}, [], _Counts()
        self._ready = {item.request_id: item.group for item in kept if item.is_ready}
        self._unreported = {item.request_id: item.group for item in kept if not item.is_reported}
        self._counts.graded = len(self._unreported)
        if self.takes_in_turn and (self._unreported or requests):  # of a run that was ahead, or kept a tail
            self._counts.rounds, self._counts.asked = 1, len(self._unreported) + len(requests)
        self._counts.mixed = sum(map(self._teaches, self._unreported.values()))
        oldest = self.num_taken - self._oldest_allowed  # for the next step; the saved run may have allowed older ones
        for key in [key for key, group in self._ready.items() if oldest_version(group) < oldest]:
            del self._ready[key]
            self._counts.dropped += 1
        self._add(requests)
