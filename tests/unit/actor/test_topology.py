"""Where ranks meet: a port that torch can listen at."""

import socket
from contextlib import ExitStack

from megatron_nft.actor.topology import free_address


def test_a_port_that_another_address_of_this_machine_has_is_not_free():
    """Ray's processes have hundreds at 127.0.0.1, while ranks meet at the node's address."""
    with ExitStack() as stack:
        taken = set()
        for _ in range(500):
            other = stack.enter_context(socket.socket())
            other.bind(("127.0.0.2", 0))
            taken.add(other.getsockname()[1])
        drawn = {int(free_address("127.0.0.1").rpartition(":")[2]) for _ in range(1000)}
    assert not drawn & taken
