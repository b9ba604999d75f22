"""How many answers an engine is given at a time: as many as it works on, and a prompt's more, so that it never waits.

A prompt's answers end one by one, so places are counted in answers: an engine whose prompts have one long answer left
each gets the next prompts. What an engine tells after every call (rollout/api.py, `Load`) comes in. Where its KV cache
is full, what it can't run waits in it while another engine may have room: it then gets less. stream.py has one for each
of several engines.
"""

from megatron_nft.rollout.api import Load

FULL = 0.95
"""Share of the KV cache in use beyond which an engine is given nothing more: vLLM would take answers out again."""
ROOMY = 0.8
"""Below it more may be tried: answers under way grow, but so do those that end."""


class Places:
    """Of one engine.

    Args:
        most: answers that it works on at a time (rollout.max_concurrent).

    Attributes:
        limit: those that it has room for, as far as is known.
        taken: answers that it works on or that wait in it.
    """

    def __init__(self, most: int) -> None:
        self._most = self.limit = most
        self.taken, self._is_full = 0, False

    def has_room(self, answers: int) -> bool:
        """For a prompt with so many answers, now."""
        return not self.taken or (not self._is_full and self.taken < self.limit + answers)

    def give(self, answers: int) -> None:
        """A prompt with so many answers goes to the engine."""
        self.taken += answers

    def heard(self, load: Load) -> None:
        """The engine has told its load; it has been given nothing since."""
        self.taken, self._is_full = load.running + load.waiting, load.kv_use > FULL
        if load.waiting and self._is_full and load.running < self.limit:
            self.limit = max(load.running, 1)
        elif load.kv_use < ROOMY and load.running >= self.limit:
            self.limit = min(self.limit + max(self.limit // 8, 1), self._most)
