"""How often lost processes are started again: in a row, without a step further than before. Counted by the run for the
actor's ranks (run/run.py), by the fleet for engines (cluster/fleet.py)."""

from megatron_nft.cluster.nodes import ClusterError


class Restarts:
    """A row of restarts with an end.

    Args:
        limit: of the restarts in a row.
        who: for the message, such as "all ranks have".
        setting: that sets the limit.
    """

    def __init__(self, limit: int, who: str, setting: str) -> None:
        self._limit, self._who, self._setting = limit, who, setting
        self._in_a_row = self._furthest = 0

    def count(self, why: object, step: int, num: int = 1) -> None:
        """So many more. A step further than at any loss before ends the row.

        Args:
            why: what was lost, and how.
            step: the last that was done when it was lost.

        Raises:
            ClusterError: that is beyond the limit.
        """
        if step > self._furthest:
            self._in_a_row, self._furthest = 0, step
        self._in_a_row += num
        if self._in_a_row > self._limit:
            raise ClusterError(
                f"{why}\n{self._who} been started again {self._in_a_row - num} times in a row without getting beyond "
                f"step {self._furthest} ({self._setting}): look at the logs, and at the machines and their memory"
            )
