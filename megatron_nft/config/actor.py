"""The Megatron ranks: settings under Megatron's names, and Megatron's rules about which go together."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from megatron_nft.config.section import Section


class ActorConfig(Section):
    """Megatron's ranks: layout, number formats, memory, overlaps."""

    tp: int = Field(1, ge=1)
    """Tensor-parallel size."""
    pp: int = Field(1, ge=1)
    """Pipeline-parallel size."""
    dp: int = Field(1, ge=1)
    """Data-parallel size; the optimizer state is sharded over it."""
    cp: int = Field(1, ge=1)
    """Context-parallel size: every sequence's tokens are spread over so many ranks, for long answers."""
    ep: int = Field(1, ge=1)
    """Expert-parallel size, for mixtures: the experts of a layer are spread over so many of the tp x cp x dp ranks."""
    etp: int | None = Field(None, ge=1)
    """Tensor-parallel size of a mixture's experts. Unset: 1 where ep > 1, so that experts are whole, else tp."""
    vpp: int = Field(1, ge=1)
    """Virtual pipeline stages per rank (Megatron's interleaved schedule): smaller bubbles for more messages."""
    num_layers_in_first_pipeline_stage: int | None = Field(None, ge=1)
    """Layers of the first rank's stages together. Unset: as many as the others have."""
    num_layers_in_last_pipeline_stage: int | None = Field(None, ge=1)
    """Layers of the last rank's stages together; fewer make up for the vocabulary's logits."""
    sequence_parallel: bool = False
    """Shard norms and residuals over the tensor-parallel ranks along the tokens."""
    precision: Literal["fp32", "bf16", "fp8-delayed", "fp8-tensorwise", "fp8-blockwise", "fp8-mxfp8"] = "bf16"
    """Number format of forward and backward; master weights and the optimizer stay fp32. FP8 by TransformerEngine's
    recipe of that name: delayed and tensorwise from Ada and Hopper on, blockwise on Hopper, mxfp8 on Blackwell."""
    num_layers_at_start_in_bf16: int = Field(0, ge=0)
    """FP8: the first so many layers stay in bf16."""
    num_layers_at_end_in_bf16: int = Field(0, ge=0)
    """FP8: the last so many layers stay in bf16."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Token budget of a packed microbatch. A single longer sequence still gets a microbatch of its own."""
    logits_mib: int = Field(128, ge=1)
    """fp32 logits that a rank holds at a time: log-probs go through the vocabulary in blocks of this size, and the
    backward pass computes their logits again, unless one block is all."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: trade time for memory."""
    moe_aux_loss_coeff: float = Field(0.0, ge=0)
    """Weight of the loss that balances a mixture's experts; 0: none. Unlike all else here it depends on the layout:
    microbatches are balanced one by one, and with tp or cp it is weaker."""
    routing_replay: Literal["off", "engine", "actor"] = "off"
    """Mixtures of experts: whose choice of experts is replayed. "engine" (R3): the one that the engine sampled with, in
    scoring, reference and training; "actor" (R2): the actor's own of scoring, in training. "off": each pass chooses."""
    overlap_grad_reduce: bool = False
    """Reduce gradients over the data-parallel ranks while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass goes on. Needs overlap_grad_reduce."""
    ddp_bucket_size: int | None = Field(None, ge=1)
    """Parameters per message of the two overlaps. Unset: 40 million, or 1 million x dp if that is more."""
    gradient_accumulation_fusion: bool = False
    """CUDA: add weight gradients to their fp32 buffers inside the matrix product. Changes no number. It is
    TransformerEngine's: NVIDIA's apex, which Megatron would ask for, is not needed (actor/performance.py)."""
    tp_comm_overlap: bool = False
    """CUDA: overlap tensor-parallel messages with the products beside them. Needs sequence_parallel, and pads every
    microbatch to tokens_per_microbatch."""
    offload_modules: list[Literal["attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm"]] = Field([])
    """CUDA: keep these modules' inputs in host memory until the backward pass
    (Megatron's fine_grained_activation_offloading)."""
    cpu_offloading_num_layers: int = Field(0, ge=0)
    """CUDA: keep all activations of so many layers in host memory until the backward pass. Needs pp = 1 and recompute =
    "none"."""
    fp8_param: bool = False
    """FP8: hold the parameters of FP8 layers in FP8 as well, and gather them so. Not for fp8-mxfp8."""
    deterministic: bool = False
    """CUDA: the same update twice is the same to the last bit, and so is a resumed run; otherwise attention's backward
    pass adds up in an order of chance. For short runs: beyond 2^30 of sequences in a pack x heads of a rank x longest
    squared, TransformerEngine leaves its fused attention, and memory grows with the longest squared."""
    timeout_s: float = Field(1800.0, gt=0)
    """Longest wait for a collective or for one verb (score, train_step) before the run stops with an error."""

    cuda_only: ClassVar[tuple[str, ...]] = (
        "gradient_accumulation_fusion",
        "tp_comm_overlap",
        "offload_modules",
        "cpu_offloading_num_layers",
        "deterministic",
    )

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def expert_tp(self) -> int:
        """Tensor-parallel size of the experts."""
        return self.etp or (1 if self.ep > 1 else self.tp)

    @property
    def layout(self) -> str:
        """In words: the axes that every run has, and those that are in use."""
        virtual = f" x {self.vpp} virtual stages" if self.vpp > 1 else ""
        context = f" x cp {self.cp}" if self.cp > 1 else ""
        experts = f", experts: etp {self.expert_tp} x ep {self.ep}" if self.ep > 1 or self.etp else ""
        return f"tp {self.tp} x pp {self.pp}{virtual}{context} x dp {self.dp}{experts}"

    def problems(self) -> Iterator[str]:
        """Megatron's rules about which settings go together."""
        yield from self._check_parallelism()
        yield from self._check_precision()
        yield from self._check_performance()

    def _check_parallelism(self) -> Iterator[str]:
        if self.pp == 1 and self.vpp > 1:
            yield (f"actor.vpp = {self.vpp} needs actor.pp > 1; one stage cannot be interleaved with others")
        if self.sequence_parallel and self.tp == 1:
            yield ("actor.sequence_parallel = true needs actor.tp > 1; there is nothing to shard over")

    def _check_precision(self) -> Iterator[str]:
        if self.num_layers_at_start_in_bf16 or self.num_layers_at_end_in_bf16:
            if not self.precision.startswith("fp8"):
                yield (
                    f'actor.num_layers_at_start_in_bf16 and _at_end_in_bf16 are for FP8; with "{self.precision}" '
                    "leave them at 0"
                )
            if self.precision == "fp8-delayed":
                yield (
                    "fp8-delayed keeps no layers in bf16 (Megatron-Core refuses it); set "
                    'actor.num_layers_at_start_in_bf16 = actor.num_layers_at_end_in_bf16 = 0, or "fp8-tensorwise"'
                )
        if self.fp8_param and (not self.precision.startswith("fp8") or self.precision == "fp8-mxfp8"):
            yield (f'actor.fp8_param = true needs fp8-delayed, fp8-tensorwise or fp8-blockwise, not "{self.precision}"')

    def _check_performance(self) -> Iterator[str]:
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            yield ("actor.overlap_param_gather = true needs actor.overlap_grad_reduce = true; set both")
        if self.tp_comm_overlap and (not self.sequence_parallel or self.cp > 1):
            yield (
                f"actor.tp_comm_overlap = true needs actor.sequence_parallel = true and actor.cp = 1, not "
                f"sequence_parallel = {str(self.sequence_parallel).lower()} and cp = {self.cp}"
            )
        if self.cpu_offloading_num_layers and (self.pp > 1 or self.recompute != "none" or self.offload_modules):
            yield (
                f"actor.cpu_offloading_num_layers = {self.cpu_offloading_num_layers} needs actor.pp = 1, "
                'actor.recompute = "none" and no offload_modules (Megatron-Core refuses them together); with pp > 1 '
                "use offload_modules"
            )
        if "attn_proj" in self.offload_modules and "core_attn" not in self.offload_modules:
            yield (
                'actor.offload_modules: "attn_proj" goes with "core_attn" only, whose backward pass needs that tensor'
            )
