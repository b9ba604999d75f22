"""What every layout must equal: a transformers model in one process, in float64, trained for three updates.

No packing, no padding and nothing of megatron_nft/actor: each sequence goes through the model by itself, the loss is
nft_loss averaged over the update's answer tokens, and the optimizer is torch's AdamW with what Megatron adds to it.
float64, so that the differences measured are the layout's own; transformers computes its norms in float32 even then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_nft.nft.loss import nft_loss, ratio_metrics
from megatron_nft.types import TrainSequence
from tests.parallel.forced import forced
from tests.parallel.layouts import NUM_LAYERS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

VOCAB_SIZE = 301
"""Odd, and at tp 4 (padded to 512) the last rank has nothing but padding."""
LEARNING_RATE, WARMUP_UPDATES, WEIGHT_DECAY, BETAS = 4e-3, 2, 0.1, (0.9, 0.999)
EPS = 1e-2
"""With Adam's usual eps a gradient of 1e-9 moves its weight as far as one of 1e-1, rounding and all; with this one a
weight moves in proportion to its gradient, so that equal weights mean equal gradients."""
GRAD_CLIP = 1.3
"""Clips the second update, not the others."""
OVERRIDES = [
    f"optimizer.learning_rate={LEARNING_RATE}",
    f"optimizer.warmup_updates={WARMUP_UPDATES}",
    f"optimizer.weight_decay={WEIGHT_DECAY}",
    f"optimizer.eps={EPS}",
    f"optimizer.grad_clip={GRAD_CLIP}",
]
"""The same for `load_config`."""

Group = list[TrainSequence]


@dataclass(frozen=True)
class Outcome:
    """What the oracle, or one rank of a layout, computes. Tensors stand under their HF names."""

    logprobs: dict[bytes, np.ndarray]  # of each sequence's answer before the first update, by its token ids
    metrics: list[dict[str, float]]  # of each update
    gradients: list[dict[str, np.ndarray]]  # of each update, before clipping
    weights: dict[str, np.ndarray]  # after the last update
    of_own_pass: dict[str, float] = field(default_factory=dict)  # see own_pass.py; not of the oracle


def make_model(folder: Path, *, tied: bool, num_layers: int = NUM_LAYERS) -> Path:
    """A small random Qwen2 in an HF folder."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=128,
        initializer_range=0.1,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    return save_random(config, folder)


def save_random(config: "PretrainedConfig", folder: Path, *, seed: int = 0, dtype: str = "float32") -> Path:
    """A random model in an HF folder; norms and biases are random, too, so that one that goes astray is seen."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


@contextmanager
def one_thread() -> Iterator[None]:
    """These models are too small for two, which wait for each other: on a busy machine for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def make_updates(folder: Path) -> list[list[Group]]:
    """Three updates of right and wrong answers to 3, 1 and 2 prompts, answers of 1 to 64 tokens.

    The old log-probs are the model's, moved: right answers lie below their old probability, so that the loss is well
    away from 0, and about half of a wrong answer's tokens are clamped.
    """
    model = load_model(folder)
    numbers = np.random.RandomState(3)
    lengths = [[(9, [64, 1, 23, 40]), (3, [5, 30, 12, 2]), (20, [17, 51, 8, 3])], [(6, [33, 11, 4])],
               [(1, [26, 14]), (12, [48, 19, 7])]]  # fmt: skip
    return [[_make_group(model, numbers, prompt, answers) for prompt, answers in update] for update in lengths]


def _make_group(model: torch.nn.Module, numbers: np.random.RandomState, prompt: int, answers: list[int]) -> Group:
    prompt_P = numbers.randint(0, VOCAB_SIZE, prompt)
    verdicts = [1.0 - i % 2 for i in range(len(answers))]
    group = []
    for length, verdict in zip(answers, verdicts, strict=True):
        sequence = TrainSequence(
            token_ids_T=np.concatenate([prompt_P, numbers.randint(0, VOCAB_SIZE, length)]).astype(np.int32),
            num_prompt_tokens=prompt,
            verdict=verdict,
            correct_rate=sum(verdicts) / len(verdicts),
            engine_logprobs_A=np.zeros(length, np.float32),
        )
        with torch.no_grad():
            logprobs_A = answer_logprobs(model, sequence).numpy()
        shift_A = 0.8 * verdict + 0.3 * np.cos(1 + np.arange(length))
        group.append(replace(sequence, old_logprobs_A=(logprobs_A + shift_A).astype(np.float32)))
    return group


def load_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    # transformers' default for experts, torch's grouped_mm, takes no float64.
    is_mixture = hasattr(AutoConfig.from_pretrained(folder), "num_experts_per_tok")
    of_experts = {"experts_implementation": "eager"} if is_mixture else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **of_experts)


def under_hf_names(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers holds all experts of a layer in two tensors; in files each has its own."""
    found = {}
    for name, tensor in named.items():
        before, is_expert, kind = name.partition(".mlp.experts.")
        if is_expert and kind == "gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = np.split(both, 2)
                found[f"{before}.mlp.experts.{expert}.gate_proj.weight"] = gate
                found[f"{before}.mlp.experts.{expert}.up_proj.weight"] = up
        elif is_expert:
            found |= {f"{before}.mlp.experts.{expert}.{kind}.weight": one for expert, one in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def answer_logprobs(model: torch.nn.Module, sequence: TrainSequence, temperature: float = 1.0) -> torch.Tensor:
    """[A], carrying the gradient."""
    tokens = torch.from_numpy(sequence.token_ids_T).long()
    first = sequence.num_prompt_tokens
    with forced(model, sequence.experts_R):
        logits = model(tokens[None]).logits[0]
    logprobs = torch.log_softmax(logits / temperature, -1)
    return logprobs[first - 1 : -1].gather(1, tokens[first:, None])[:, 0]


@one_thread()
def train(
    folder: Path,
    updates: list[list[Group]],
    *,
    grad_clip: float = GRAD_CLIP,
    decays_all: bool = False,
    temperature: float = 1.0,
    model: torch.nn.Module | None = None,
) -> Outcome:
    """The oracle's outcome. Megatron decays matrices only, neither norms nor biases (unless `decays_all`).

    Args:
        model: of the folder, with what of it is trained; None: all of it.
    """
    model = load_model(folder) if model is None else model
    with torch.no_grad():
        sequences = [s for groups in updates for group in groups for s in group]
        logprobs = {s.token_ids_T.tobytes(): answer_logprobs(model, s, temperature).numpy() for s in sequences}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for p in named.values() if p.dim() > 1 or decays_all]
    others = [p for p in named.values() if p.dim() == 1 and not decays_all]
    parts = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([part for part in parts if part["params"]], betas=BETAS, eps=EPS)
    metrics, gradients = [], []
    for number, groups in enumerate(updates, 1):
        optimizer.zero_grad()
        metrics.append(_backward(model, [s for group in groups for s in group], temperature))
        gradients.append({name: p.grad.numpy().copy() for name, p in named.items()})
        norm = torch.stack([p.grad.norm() for p in named.values()]).norm()
        metrics[-1]["actor/grad_norm"] = norm.item()
        for parameter in named.values():
            parameter.grad *= min(1.0, grad_clip / (norm + 1e-6))  # Megatron's guard, in clip_grads.py
        for part in optimizer.param_groups:
            part["lr"] = LEARNING_RATE * min(number / WARMUP_UPDATES, 1.0)
        optimizer.step()
    return Outcome(logprobs, metrics, gradients, {name: p.detach().numpy() for name, p in named.items()})


def _backward(model: torch.nn.Module, sequences: list[TrainSequence], temperature: float) -> dict[str, float]:
    """Leaves the gradient of one update; its metrics, under the names of actor/pipeline.py."""
    repeats = [s.num_answer_tokens for s in sequences]
    logprobs_A = torch.cat([answer_logprobs(model, s, temperature) for s in sequences])
    old_A = torch.from_numpy(np.concatenate([s.old_logprobs_A for s in sequences])).double()
    verdicts_A, rates_A = (
        torch.from_numpy(np.repeat([getattr(s, name) for s in sequences], repeats))
        for name in ("verdict", "correct_rate")
    )
    losses_A = nft_loss(logprobs_A, old_A, verdicts_A, rates_A)
    losses_A.mean().backward()
    sums = ratio_metrics(logprobs_A, old_A, verdicts_A, rates_A, clamp_negative=1.0)
    losses_A = losses_A.detach()
    return {
        "nft/loss": losses_A.mean().item(),
        "nft/loss_right": (losses_A * verdicts_A).mean().item(),
        "nft/loss_wrong": (losses_A * (1 - verdicts_A)).mean().item(),
        "nft/ratio_mean": sums["ratio_sum"].item() / len(losses_A),
        "nft/ratio_max": sums["ratio_max"].item(),
        "nft/clamped_fraction": sums["clamped"].item() / sums["wrong_tokens"].item(),
        "actor/tokens": float(sum(s.num_tokens for s in sequences)),
    }
