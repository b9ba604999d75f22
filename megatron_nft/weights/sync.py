"""The actor's weights into the running engines: announce -> stream buckets -> finish, stamped with a policy_version.

`actor` and `engines` come in as cluster/ranks.py and cluster/fleet.py hold them; metrics go out. While the engines load
a bucket, the actor puts the next on the wire: two are in use at a time. Between the announcement and the finish no
engine generates, and an engine that missed a bucket refuses to, so half-new weights never answer. An engine that dies
is replaced, and the sync begins again. Called after each step (run/run.py).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

PHASES = ("announce", "gather", "load", "finish")
"""What the driver waits for: engines that open an update, the actor's next bucket, engines that load it, and close."""
Turn = Callable[[], AbstractContextManager[None]]


def sync_weights(actor: Any, engines: Any, policy_version: int, engine_turn: Turn = nullcontext) -> dict[str, float]:
    """One weight sync; engines and actor must be idle.

    Args:
        engine_turn: around it, hands GPUs that they share over to the engines (cluster/turns.py).

    Returns:
        weights/ metrics.

    Raises:
        ClusterError: a phase passed weights.timeout_s, a rank died, or engines died too often; the message names
            phase, process and bucket.
        EngineError: an engine refused a bucket.
    """
    start = time.perf_counter()
    metrics = engines.with_replacements(lambda: _stream(actor, engines, policy_version, engine_turn))
    seconds = time.perf_counter() - start
    return metrics | {"weights/gib_per_s": metrics["weights/bytes"] / 2**30 / seconds}


def _stream(actor: Any, engines: Any, policy_version: int, engine_turn: Turn) -> dict[str, float]:
    num_bytes = num_buckets = 0
    seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def timed(phase: str):
        begun = time.perf_counter()
        yield
        seconds[phase] += time.perf_counter() - begun

    ahead = actor.begin_send(0, engines.link)
    with engine_turn():
        with timed("announce"):
            engines.start_update(actor.weight_names)
        for index in range(actor.num_rounds):
            with timed("gather"):
                manifests = ahead.wait()
            if index + 1 < actor.num_rounds:
                ahead = actor.begin_send(index + 1, engines.link)
            with timed("load"):
                engines.update(manifests)
            num_bytes += sum(manifest.num_bytes for manifest in manifests)
            num_buckets += len(manifests)
        with timed("finish"):
            engines.finish_update(policy_version)
    return {
        "weights/bytes": num_bytes,
        "weights/buckets": num_buckets,
        **{f"weights/{phase}_s": spent for phase, spent in seconds.items()},
    }
