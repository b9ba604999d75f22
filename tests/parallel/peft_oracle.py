"""What adapters must equal: PEFT's, on a transformers model in float64, trained as tests/parallel/oracle.py trains."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.parallel.oracle import Group, Outcome, load_model, train

RANK, ALPHA = 4, 6.0
PROJECTIONS = {
    "linear_qkv": ["q_proj", "k_proj", "v_proj"],
    "linear_proj": ["o_proj"],
    "linear_fc1": ["gate_proj", "up_proj"],
    "linear_fc2": ["down_proj"],
}
ALL = tuple(PROJECTIONS)


def make_adapter(base: Path, folder: Path, targets: tuple[str, ...] = ALL, *, rank: int = RANK, rslora: bool = False,
                 seed: int = 7, size: float = 0.1) -> Path:  # fmt: skip
    """A PEFT folder that peft has written; B is random, too, so that A has a gradient."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    modules = [name for target in targets for name in PROJECTIONS[target]]
    config = LoraConfig(r=rank, lora_alpha=ALPHA, use_rslora=rslora, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(size * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def peft_model(base: Path, adapter: Path) -> torch.nn.Module:
    """In float64, its adapters trainable."""
    from peft import PeftModel

    return PeftModel.from_pretrained(
        load_model(base), adapter, is_trainable=True, autocast_adapter_dtype=False
    ).double()


def train_adapter(base: Path, adapter: Path, updates: list[list[Group]]) -> Outcome:
    """Under the names of a PEFT folder."""
    outcome = train(base, updates, model=peft_model(base, adapter))
    gradients = [_renamed(tensors) for tensors in outcome.gradients]
    return replace(outcome, gradients=gradients, weights=_renamed(outcome.weights))


def _renamed(tensors: dict) -> dict:
    return {name.replace(".default.", "."): tensor for name, tensor in tensors.items()}
