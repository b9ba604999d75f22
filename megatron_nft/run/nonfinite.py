"""Updates whose gradient is not finite: kept, to be looked at again with megatron_nft.replay."""

from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config
from megatron_nft.observe.batches import save_batch
from megatron_nft.observe.report import Report
from megatron_nft.types import TrainBatch


class NonFiniteUpdate(RuntimeError):
    """An update's gradient was not finite."""


def keep_nonfinite(step: int, batch: TrainBatch, config: Config, actors: Actors, report: Report) -> None:
    """Keeps the batch of a step with a non-finite update.

    Raises:
        NonFiniteUpdate: unless optimizer.skip_nonfinite; the weights that the update met are kept, too.
    """
    folder = config.run_dir / "nonfinite" / f"step_{step}"
    save_batch(batch, folder / "batch.npz", step)
    replay = f"python -m megatron_nft.replay {config.run_dir / 'recipe.toml'} {folder / 'batch.npz'}"
    if config.optimizer.skip_nonfinite:
        report.announce(f"step {step}: left a non-finite update out; look at it with: {replay}")
        return
    actors.save_hf(folder / "hf")
    # The gradient is of the adapters beside it, not of what the model with them would begin with.
    weights = f"lora.adapter={folder / 'adapter'}" if config.lora.rank else f"model.path={folder / 'hf'}"
    raise NonFiniteUpdate(
        f"step {step}: an update's gradient was not finite, and was not applied; look at it with: "
        f"{replay} {weights}   (or leave such updates out: optimizer.skip_nonfinite=true)"
    )
