"""What the forward pass keeps for the backward pass: which tensors, how many bytes of each, on which kind of layers.

Two kinds of layers keep different things. Transformer Engine's (CUDA) fuse norms into the products behind them and
SwiGLU into one kernel, and their attention is FlashAttention; the local ones (CPU) keep every step between. The tables
below name each tensor; tests/parallel/test_plan.py holds the local one to what autograd saves, the other follows
TransformerEngine 2.20's and Megatron-Core's sources and has not been measured here.

Sizes are bytes per token of a microbatch on one rank: h hidden, q and k the rank's query and key (or value) channels,
f its share of the intermediate size, n its query heads, b bytes of an element. Norms' tensors are cut by sequence
parallelism, the others by tensor parallelism.
"""

from dataclasses import dataclass

from megatron_nft.config import ActorConfig
from megatron_nft.families.hf_config import HFConfig


@dataclass(frozen=True)
class Kept:
    """One tensor of a layer that is kept for the backward pass."""

    name: str
    bytes_per_token: float  # of the tokens that this rank has of it, over all tokens of the microbatch
    module: str  # of actor.offload_modules: kept in host memory if that is named; "": never
    in_core_attention: bool = False  # computed again by recompute = "selective"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One rank's share of a layer."""

    h: int
    q: int
    k: int
    f: int
    routed: float  # bytes of what routing keeps: a token's copies for its experts, and the router's scores
    n: int
    head_dim: int
    b: int  # bytes of an element
    w: float  # of an input of a linear module: 1 in FP8
    sp: int  # ranks over which norms' tokens are cut
    cp: int
    qk_norm: bool
    uneven: bool  # sequences of a pack are of different lengths

    @classmethod
    def of(cls, hf: HFConfig, actor: ActorConfig, *, uneven: bool = True) -> "Shape":
        b = 4 if actor.precision == "fp32" else 2
        return cls(
            h=hf.hidden_size,
            q=hf.num_attention_heads * hf.head_dim // actor.tp,
            k=hf.num_key_value_heads * hf.head_dim // actor.tp,
            f=hf.active_intermediate_size // actor.tp,
            routed=_routed(hf, actor),
            n=hf.num_attention_heads // actor.tp,
            head_dim=hf.head_dim,
            b=b,
            w=1 if actor.precision.startswith("fp8") else b,
            sp=actor.tp if actor.sequence_parallel else 1,
            cp=actor.cp,
            qk_norm=hf.qk_norm,
            uneven=uneven and actor.cp == 1,
        )


def _routed(hf: HFConfig, actor: ActorConfig) -> float:
    """Of a token of the microbatch, on one rank; the mean of all layers."""
    if (mixture := hf.mixture) is None:
        return 0.0
    element = 4 if actor.precision == "fp32" else 2
    copies = element * mixture.experts_per_token * hf.hidden_size * actor.expert_tp / actor.tp
    scores = 3 * 4 * mixture.num_experts / (actor.tp if actor.sequence_parallel else 1)
    return (copies + scores) * len(hf.sparse_layers) / hf.num_hidden_layers


def layer_tensors(shape: Shape, *, is_local: bool) -> tuple[Kept, ...]:
    """What one layer keeps without recomputation."""
    kept = _local_layer(shape) if is_local else _engine_layer(shape)
    return (*kept, Kept("tokens' copies for their experts, scores", shape.routed, "")) if shape.routed else kept


def _engine_layer(s: Shape) -> tuple[Kept, ...]:
    """TransformerEngine's layer."""
    norms = (
        Kept("queries, normalised", s.b * s.q, "core_attn"),
        Kept("keys, normalised", s.b * s.k, "core_attn"),
    )
    return (
        Kept("input of the attention's norm", s.b * s.h / s.sp, "attn_norm"),
        Kept("input of linear_qkv", s.w * s.h / s.sp, "qkv_linear"),
        Kept("output of linear_qkv, which the values are a view of", s.b * (s.q + 2 * s.k), "core_attn"),
        *(norms if s.qk_norm else ()),
        Kept("queries with rope", s.b * s.q, "core_attn"),
        Kept("keys with rope", s.b * s.k, "core_attn"),
        Kept("log-sum-exp of the attention", 4 * s.n, "", in_core_attention=True),
        Kept("output of the attention", s.b * s.q, "attn_proj"),
        *((Kept("input of linear_proj in FP8", s.w * s.q, "attn_proj"),) if s.w < s.b else ()),
        Kept("input of the MLP's norm", s.b * s.h / s.sp, "mlp_norm"),
        Kept("input of linear_fc1", s.w * s.h / s.sp, ""),
        Kept("gate and up", s.b * 2 * s.f, ""),
        Kept("input of linear_fc2", s.w * s.f, ""),
        Kept("statistics of the norms", 8 / s.sp, ""),
    )


def _local_layer(s: Shape) -> tuple[Kept, ...]:
    """Megatron's local layer with actor/model.py's RMSNorm and actor/attention.py."""
    fused = s.b * (s.q + 2 * s.k)
    return (
        *_local_norm(s, "attention"),
        Kept("input of linear_qkv", s.b * s.h / s.sp, "qkv_linear"),
        *(_local_head_norms(s) if s.qk_norm else ()),
        Kept("cosines and sines, of queries and of keys", 4 * s.b * s.head_dim, ""),
        Kept("queries with rope", s.b * s.q, "core_attn"),
        Kept("keys with rope", s.b * s.k * s.cp, "core_attn"),
        Kept(
            "output of linear_qkv (values are a view), or gathered values",
            fused if s.cp == 1 else s.b * s.k * s.cp,
            "core_attn",
        ),
        *((Kept("copies of sequences of other lengths", fused, "", in_core_attention=True),) if s.uneven else ()),
        Kept("log-sum-exp of the attention", 4 * s.n, "", in_core_attention=True),
        Kept("output of the attention", s.b * s.q, "core_attn", in_core_attention=True),
        Kept("input of linear_proj", s.b * s.q, "attn_proj"),
        *_local_norm(s, "MLP"),
        Kept("input of linear_fc1", s.b * s.h / s.sp, ""),
        Kept("gate and up", s.b * 2 * s.f, ""),
        Kept("up + 0", s.b * s.f, ""),  # Megatron's glu adds an offset of 0
        Kept("silu(gate)", s.b * s.f, ""),
        Kept("input of linear_fc2", s.b * s.f, ""),
    )


def _local_norm(s: Shape, what: str) -> tuple[Kept, ...]:
    """Statistics are in fp32: of a bf16 input there is a copy."""
    return (
        Kept(f"fp32 input of the {what}'s norm", 4 * s.h / s.sp, ""),
        Kept(f"statistics of the {what}'s norm", 4 / s.sp, ""),
        Kept(f"normalised input of the {what}'s norm", s.b * s.h / s.sp, ""),
    )


def _local_head_norms(s: Shape) -> tuple[Kept, ...]:
    # The fp32 keys are a view of linear_qkv's output, which is kept anyway; the queries are not.
    keys = () if s.b == 4 else (Kept("fp32 keys", 4 * s.k, ""),)
    return (
        Kept("fp32 queries", 4 * s.q, ""),
        Kept("normalised queries", s.b * s.q, ""),
        *keys,
        Kept("normalised keys", s.b * s.k, ""),
        Kept("statistics of queries and keys", 4 * (s.q + s.k) / s.head_dim, ""),
    )


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of a rank at the fullest moment of an update."""

    kept: float  # on the device
    recomputed: float  # of the layer whose forward pass is done again
    head: float  # final norm and log-probs, on the last stage
    messages: float  # inputs and outputs of stages, kept for as long as their microbatch is under way
    host: float  # offloaded

    @property
    def saved(self) -> float:
        """What autograd holds at once."""
        return self.kept + max(self.recomputed, self.head)


def stages_in_flight(actor: ActorConfig, pp_rank: int, microbatches: int) -> int:
    """Forward passes of virtual stages whose backward pass is still to come, at most (Megatron's 1F1B schedules)."""
    if actor.pp == 1:
        return 1
    if actor.vpp == 1:
        return min(actor.pp - pp_rank, microbatches)
    microbatches = -(-microbatches // actor.pp) * actor.pp  # actor/pipeline.py fills up with empty ones
    warmup = 2 * (actor.pp - pp_rank - 1) + (actor.vpp - 1) * actor.pp
    return min(warmup + 1, microbatches * actor.vpp)


def activations(
    hf: HFConfig,
    actor: ActorConfig,
    *,
    pp_rank: int,
    layers: int,
    tokens: float,
    answer_tokens: float,
    microbatches: int,
    is_local: bool,
    uneven: bool = True,
) -> Activations:
    """Of one rank during an update.

    Args:
        layers: of this rank, over its virtual stages.
        tokens: of a microbatch on this rank: a share, with context parallelism.
        answer_tokens: those of them whose log-probs count.
        microbatches: of an update on one data-parallel rank.
        is_local: Megatron's local layers, not TransformerEngine's.
        uneven: the sequences of a microbatch are of different lengths; local layers copy those.
    """
    shape = Shape.of(hf, actor, uneven=uneven)
    tensors = layer_tensors(shape, is_local=is_local)
    everything = sum(t.bytes_per_token for t in tensors)
    core = sum(t.bytes_per_token for t in tensors if t.in_core_attention)
    boundary = shape.b * shape.h / shape.sp
    per_layer = {"none": everything, "selective": everything - core, "full": boundary}[actor.recompute]
    again = {"none": 0.0, "selective": core, "full": everything}[actor.recompute]
    offloaded = (
        0.0
        if actor.recompute == "full"
        else sum(t.bytes_per_token for t in tensors if t.module in actor.offload_modules)
    )
    in_flight = stages_in_flight(actor, pp_rank, microbatches) * tokens
    on_host = in_flight * layers / actor.vpp * offloaded
    kept = in_flight * layers / actor.vpp * (per_layer - offloaded)
    if actor.cpu_offloading_num_layers:  # goes with pp = 1 and no offload_modules only
        moved = min(actor.cpu_offloading_num_layers, layers)
        on_host, kept = in_flight * moved * per_layer, in_flight * (layers - moved) * per_layer
    is_first_only, is_last_only = pp_rank == 0 and actor.vpp == 1, pp_rank == actor.pp - 1 and actor.vpp == 1
    messages = (not is_first_only) + (not is_last_only) if actor.pp > 1 else 0
    return Activations(
        kept=kept,
        recomputed=tokens * again,
        head=_head(shape, tokens, answer_tokens, is_local=is_local) if pp_rank == actor.pp - 1 else 0.0,
        messages=in_flight * boundary * messages,
        host=on_host,
    )


HEAD_BYTES_PER_ANSWER_TOKEN = 60
"""Labels, log-probs, ratios and what else the loss keeps of an answer token: small beside its hidden state."""


def _head(s: Shape, tokens: float, answer_tokens: float, *, is_local: bool) -> float:
    """The final norm, and the answer tokens' hidden states, whole on every tensor-parallel rank."""
    norm = (4 * s.h + s.b * s.h + 4) / s.sp if is_local else (s.b * s.h + 4) / s.sp
    return tokens * norm + answer_tokens * (s.b * s.h + HEAD_BYTES_PER_ANSWER_TOKEN)
