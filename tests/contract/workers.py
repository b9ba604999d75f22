"""What test_te_worker.py has whole Workers do on a played H100, on the quickstart's stored batch."""

from pathlib import Path
from typing import Any

import numpy as np

ASSETS = Path("tests/assets/quickstart")
RECIPE = "launch/recipes/quickstart.toml"
SEQUENCES = 24
"""Of each of two updates."""


class Played:
    """A Worker and its share of the batch."""

    def __init__(self, rank: int, master: str, overrides: list[str]) -> None:
        from megatron_nft.actor.topology import data_parallel_rank
        from megatron_nft.actor.worker import Worker
        from megatron_nft.config import load_config
        from megatron_nft.data.packing import pack
        from megatron_nft.observe.batches import load_batch

        config = load_config(RECIPE, ["actor.tp=1", "rollout.engines=1", "cluster.device=cuda", *overrides])
        self.worker = Worker(config, rank=rank, master=master)
        stored = [update[:SEQUENCES] for update in load_batch(ASSETS / "batch.npz")[:2]]
        batch = pack(stored, num_updates=2, dp=config.actor.dp, tokens_per_microbatch=2048)
        replica = data_parallel_rank(config.actor, rank)
        self.updates = [list(update[replica]) for update in batch.updates]

    def scores(self, update: int) -> np.ndarray | None:
        """Log-probs of an update's answers, one after the other."""
        found = self.worker.score(self.updates[update])
        return None if found is None else np.concatenate(found)

    def stored(self, update: int) -> np.ndarray:
        """The same as the quickstart's run found them: local layers, fp32, a CPU."""
        return np.concatenate([s.old_logprobs_A for m in self.updates[update] for s in m.sequences])

    def go_on(self) -> tuple[dict[str, float] | None, np.ndarray | None]:
        """The second update: its metrics, and what is likely after it."""
        return self.worker.train_step([self.updates[1]]), self.scores(1)

    def deterministic(self) -> set[tuple[bool, bool]]:
        """Of each layer: Megatron's word for it, TransformerEngine's attention's."""
        layers = [m for chunk in self.worker.model for m in chunk.modules() if hasattr(m, "deterministic")]
        return {(layer.config.deterministic_mode, layer.deterministic) for layer in layers if hasattr(layer, "config")}

    def scales(self) -> dict[str, np.ndarray]:
        """Of delayed scaling, by layer and name."""
        return {
            f"{number}.{name}.{key}.{kind}": getattr(layer.fp8_meta[key], kind).numpy().copy()
            for number, chunk in enumerate(self.worker.model)
            for name, layer in chunk.module.named_modules()
            if hasattr(layer, "fp8_meta")
            for key in ("scaling_fwd", "scaling_bwd")
            if hasattr(layer.fp8_meta.get(key), "scale")
            for kind in ("scale", "amax_history")
        }

    def move_scales(self) -> None:
        """What a kernel would have measured: no two layers the same."""
        import torch

        torch.manual_seed(0)
        for chunk in self.worker.model:
            for layer in chunk.modules():
                for key in ("scaling_fwd", "scaling_bwd"):
                    if hasattr(getattr(layer, "fp8_meta", {}).get(key), "scale"):
                        layer.fp8_meta[key].scale.uniform_(0.5, 2.0)
                        layer.fp8_meta[key].amax_history.uniform_(0.5, 2.0)


def first_run(rank: int, master: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """Scores, updates, saves and goes on; then goes back to what it saved and goes on once more."""
    played = Played(rank, master, overrides)
    found: dict[str, Any] = {"scores": played.scores(0), "stored": played.stored(0)}
    found["deterministic"] = played.deterministic()
    found["metrics"] = played.worker.train_step([played.updates[0]])
    played.move_scales()
    found["scales"] = played.scales()
    played.worker.begin_save(folder, 1, 1)
    found["straight"] = played.go_on()
    played.worker.finish_save()
    played.worker.load(folder)
    found["resumed"] = played.go_on()
    played.worker.shutdown()
    return found


def another_run(rank: int, master: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """A fresh process that loads what `first_run` saved, and goes on."""
    played = Played(rank, master, overrides)
    played.worker.load(folder)
    found = {"scales": played.scales(), "resumed": played.go_on()}
    played.worker.shutdown()
    return found


def devices_after_an_offload(rank: int, master: str) -> tuple[set[str], set[str]]:
    """Where the optimizer's parameters lie before and after the engines' turn, with the device played by "meta"."""
    import torch

    overrides = ["optimizer.optimizer_cpu_offload=true", "cluster.placement=colocated", "actor.precision=bf16"]
    worker = Played(rank, master, overrides).worker

    def devices() -> set[str]:
        return {p.device.type for group in worker.optimizer.param_groups for p in group["params"]}

    before = devices()
    torch.Tensor.cuda = lambda self, *arguments, **keywords: self.to("meta")
    worker.offload()
    worker.reload()
    return before, devices()
