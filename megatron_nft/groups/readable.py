"""Whether answers can be read: graded groups come in; what is wrong goes out where nearly none of a data source
can, as when a mode looks for a box and no prompt asks for one. Used by source.py, before anything is trained on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_nft.config import VerdictConfig
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.types import RolloutGroup
from megatron_nft.verdict.graders import mode_of

SHOWN_ANSWERS, SHOWN_CHARS = 3, 400
FEWEST_GROUPS = 8
"""Of a data source, before it is judged: the answers to one prompt may all be odd."""


class UnreadableAnswers(NoMixedGroups):
    """Nearly no answer of a data source has a final answer that its mode finds."""


@dataclass
class _Seen:
    """A data source's answers since it was looked at last."""

    answers: int = 0
    unparsable: int = 0
    truncated: int = 0
    groups: int = 0
    details: Counter[str] = field(default_factory=Counter)
    prompt: str = ""
    texts: list[str] = field(default_factory=list)


class ReadableAnswers:
    """Looks at each step's worth of graded answers."""

    def __init__(self, config: VerdictConfig, groups_per_step: int) -> None:
        self._config, self._groups_per_look = config, groups_per_step
        self.forget()

    def forget(self) -> None:
        """Has seen nothing."""
        self._num_groups = self._num_in_turn = 0
        self._seen: dict[str, _Seen] = {}

    def add(self, groups: Sequence[RolloutGroup]) -> list[str]:
        """Takes graded groups.

        Returns:
            What is to be said, with verdict.if_unparsable = "warn".

        Raises:
            UnreadableAnswers: with "stop".
        """
        for group in groups:
            self._count(group)
        if self._num_groups < self._groups_per_look:
            return []
        self._num_groups = 0
        fewest = min(FEWEST_GROUPS, self._groups_per_look)
        looked_at = {source: its for source, its in self._seen.items() if its.groups >= fewest}
        for source in looked_at:
            del self._seen[source]
        lines = [
            self._words(source, its)
            for source, its in looked_at.items()
            if its.unparsable > self._config.max_unparsable * its.answers
        ]
        if lines and self._config.if_unparsable == "stop":
            raise UnreadableAnswers("\n".join(lines))
        return lines

    def add_in_turn(self, groups: Sequence[RolloutGroup], *, are_all: bool = False) -> list[str]:
        """As `add`, where steps take groups in the order of their prompts: what is found depends neither on those that
        a step drops, nor on which came first.

        Args:
            groups: of a step, all that are graded so far and are to be told of, in that order; a part has been taken.
            are_all: the next ones are another step's.
        """
        new = groups[self._num_in_turn :]
        self._num_in_turn = 0 if are_all else len(groups)
        return self.add(new)

    def _count(self, group: RolloutGroup) -> None:
        its = self._seen.setdefault(group.prompt.data_source, _Seen())
        self._num_groups += 1
        its.groups += 1
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            its.answers += 1
            if verdict.kind != "unparsable":
                continue
            its.unparsable += 1
            its.truncated += rollout.truncated
            its.details[verdict.detail] += 1
            its.prompt = its.prompt or group.prompt.text
            if len(its.texts) < min(SHOWN_ANSWERS, its.groups):  # of as many prompts
                its.texts.append(rollout.text)

    def _words(self, source: str, its: _Seen) -> str:
        mode, reason = mode_of(source, self._config.modes), its.details.most_common(1)[0][0]
        shown = [f"a prompt ends: {_ends(its.prompt)}", *(f"an answer: {_ends(text)}" for text in its.texts)]
        remedy = "let the prompts ask for what the mode reads (data.system_prompt), or choose another in verdict.modes"
        if 2 * its.truncated > its.unparsable:
            remedy = f"raise rollout.max_answer_tokens; or {remedy}"
        if self._config.if_unparsable == "stop":
            remedy += '; verdict.if_unparsable = "warn" goes on all the same'
        return (
            f"{its.unparsable} of {its.answers} answers of {source!r} are unparsable by mode {mode!r} ({reason}; "
            f"{its.truncated} of them were cut off): {remedy}" + "".join(f"\n  {line}" for line in shown)
        )


def _ends(text: str) -> str:
    """A text's beginning and end, on one line."""
    if len(text) > SHOWN_CHARS:
        text = f"{text[: SHOWN_CHARS // 4]} ... {text[-3 * SHOWN_CHARS // 4 :]}"
    return repr(text)
