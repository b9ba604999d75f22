"""A checkpoint: how long training waits for it, how long it takes to be written and read, and what comes after it.

python -m tests.gpu.prove.resume
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from megatron_nft.actor.topology import free_address
from tests.gpu.prove.models import make_batch, make_model, recipe
from tests.gpu.prove.report import figure

VOCABULARY = 32_000
"""Of a smaller embedding than the model's: 14 bytes a parameter are written."""
MOST_GAP = 1e-2
"""Nats: kernels on a GPU add in no fixed order unless they are told to."""


def main() -> None:
    from megatron_nft.actor.worker import Worker

    with tempfile.TemporaryDirectory() as scratch:
        config = recipe(make_model("7b", Path(scratch) / "model", vocabulary=VOCABULARY))
        worker, batch = Worker(config, rank=0, master=free_address()), make_batch(config)
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        worker.train_step([batch])
        start = time.perf_counter()
        worker.begin_save(str(folder), 1, 1)
        figure("training waits for a save", time.perf_counter() - start, "s")
        straight = worker.train_step([batch]), worker.score(batch)
        worker.finish_save()
        written, size = time.perf_counter() - start, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        figure("written after", written, "s", f"{size / 1e9:.2f} GB, {size / 1e9 / written:.2f} GB/s beside a step")
        start = time.perf_counter()
        worker.load(str(folder))
        figure("read", time.perf_counter() - start, "s", f"{size / 1e9 / (time.perf_counter() - start):.2f} GB/s")
        resumed = worker.train_step([batch]), worker.score(batch)
        gap = max(np.abs(x - y).max() for x, y in zip(straight[1], resumed[1], strict=True))
        norms = straight[0]["actor/grad_norm"], resumed[0]["actor/grad_norm"]
        figure(
            "log-probs after the next update",
            float(gap),
            "nats apart",
            f"gradient norms {norms[0]:.6g}, {norms[1]:.6g}",
        )
        worker.shutdown()
    assert gap < MOST_GAP, f"resumed log-probs are {gap} nats from those of the run that went straight on"


if __name__ == "__main__":
    main()
