"""Adapters in place of the whole model: LoRA, as PEFT has it."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from megatron_nft.config.errors import RecipeError
from megatron_nft.config.paths import PathText
from megatron_nft.config.section import Section
from megatron_nft.families.lora import TARGETS, Adapters

NOT_PLAIN = (
    "dora", "use_dora", "pissa", "olora", "vera", "adalora", "loha", "lokr", "qalora", "use_qalora", "lora_bias",
    "bias", "init_lora_weights", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "experts",
)  # fmt: skip
"""What PEFT has besides, by its names."""
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""For which vLLM 0.32 has room for an adapter."""


class LoraConfig(Section):
    """LoRA: the model stays as it is, and beside its linear modules W a product of two small matrices is trained,
    W + scale B A."""

    rank: int = Field(0, ge=0)
    """Rows of A, columns of B (PEFT's r). 0: no adapters, the whole model is trained."""
    alpha: float | None = Field(None, gt=0)
    """The scale is alpha / rank. Unset: twice the rank."""
    rslora: bool = False
    """The scale is alpha / sqrt(rank) (PEFT's use_rslora)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are left out in training, drawn anew each time; not while answers are scored.
    Above 0 a run depends on its layout: ranks draw numbers of their own."""
    targets: list[Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]] = Field(list(TARGETS), min_length=1)
    """Modules that have an adapter: queries, keys and values; attention's output; the MLP's gate and up; its down."""
    adapter: PathText | None = None
    """PEFT folder of an adapter to begin with, of the same rank, alpha and targets. Unset: A is drawn as PEFT draws it,
    from run.seed, and B is 0, so that training begins from the model."""
    sync: Literal["auto", "adapter", "merged"] = "auto"
    """What goes to the engines: "adapter", A and B alone, which vLLM adds while it samples (megabytes; engines read the
    model from model.path); "merged", every weight with its B A added (as much as of a whole model; sampling is as fast
    as without adapters). "auto": adapter on GPUs, merged on CPUs, where vLLM's adapters make sampling about 3 times as
    slow, and where model.path is a Megatron checkpoint, which vLLM can't read."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        found = [key for key in NOT_PLAIN if key in given] if isinstance(given, dict) else []
        if found:
            raise RecipeError(f"lora.{found[0]} is not supported: adapters are plain LoRA (or rslora) of whole modules")
        return given

    @property
    def adapters(self) -> Adapters | None:
        """What they are; None: there are none."""
        if not self.rank:
            return None
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return Adapters(rank=self.rank, alpha=alpha, rslora=self.rslora, targets=tuple(self.targets))

    @property
    def engine_rank(self) -> int:
        """The smallest that vLLM knows and that has room."""
        return next(rank for rank in ENGINE_RANKS if rank >= self.rank)

    def problems(self) -> Iterator[str]:
        """What its settings can't be together."""
        if not self.rank:
            for key, field in type(self).model_fields.items():
                if (value := getattr(self, key)) != field.default:
                    yield f"lora.{key} = {value!r} needs adapters; set lora.rank, or leave it out"
        if len(set(self.targets)) < len(self.targets):
            yield f"lora.targets = {list(self.targets)}: one comes twice; name each module once"
        if self.sync == "adapter" and self.rank > ENGINE_RANKS[-1]:
            yield (
                f'lora.rank = {self.rank} with lora.sync = "adapter": vLLM takes adapters up to rank '
                f'{ENGINE_RANKS[-1]}; set lora.sync = "merged"'
            )
