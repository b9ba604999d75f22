"""The actor's weights into the running engines: announce -> stream buckets -> finish, stamped with a policy_version.

`actor` and `engines` come in as cluster/workers.py holds them; metrics go out. While the engines load a bucket, the
actor gathers the next: two buckets are in use at a time. Between the announcement and the finish no engine generates,
and an engine that missed a bucket refuses to, so half-new weights never answer. Called by train.py after each step.
"""

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_nft.weights.wire import BucketManifest, remove_bucket

SHARED_MEMORY = Path("/dev/shm")
PHASES = ("announce", "gather", "load", "finish")
"""What the driver waits for: engines that open an update, the actor's next bucket, engines that load it, and close."""


def sync_weights(actor: Any, engines: Any, policy_version: int) -> dict[str, float]:
    """One weight sync; engines and actor must be idle.

    Returns:
        weights/ metrics.

    Raises:
        ClusterError: a phase passed weights.timeout_s, or a process died; the message names both.
    """
    start, num_bytes, num_buckets = time.perf_counter(), 0, 0
    seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def timed(phase: str):
        begun = time.perf_counter()
        yield
        seconds[phase] += time.perf_counter() - begun

    folder = Path(tempfile.mkdtemp(prefix="megatron_nft-", dir=SHARED_MEMORY))
    try:
        rounds = actor.num_buckets()
        ahead = actor.begin_send(0, folder)
        with timed("announce"):
            engines.start_update(actor.weight_names())
        for index in range(rounds):
            with timed("gather"):
                manifests = [BucketManifest.from_dict(plain) for plain in ahead.wait() if plain is not None]
            if index + 1 < rounds:
                ahead = actor.begin_send(index + 1, folder)
            with timed("load"):
                for manifest in manifests:
                    engines.update(manifest)
                    remove_bucket(manifest)
                    num_bytes += manifest.num_bytes
                    num_buckets += 1
        with timed("finish"):
            engines.finish_update(policy_version)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "weights/bytes": num_bytes,
        "weights/buckets": num_buckets,
        "weights/gib_per_s": num_bytes / 2**30 / (time.perf_counter() - start),
        **{f"weights/{phase}_s": spent for phase, spent in seconds.items()},
    }
