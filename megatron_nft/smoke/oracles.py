"""What the ranks are compared with: `transformers`, and the same program on one rank."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_nft.smoke.screen import FOLDER
from megatron_nft.types import TrainSequence


def transformers_logprobs(folder: str, sequences: Sequence[TrainSequence], device: torch.device) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).to(device).eval()
    found = []
    with torch.no_grad():
        for sequence in sequences:
            tokens = torch.from_numpy(sequence.token_ids_T).long().to(device)
            first = sequence.num_prompt_tokens
            logprobs = torch.log_softmax(model(tokens[None]).logits[0, first - 1 : -1], -1)
            found.append(logprobs.gather(1, tokens[first:, None])[:, 0].cpu().numpy())
    return np.concatenate(found)


def single_rank(model: str, precision: str) -> dict[str, Any]:
    """Runs this program on one rank, in a process of its own, for the comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "single.npz"
        ours = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", FOLDER)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        command = [sys.executable, "-m", "megatron_nft.smoke", "--model", model, "--precision", precision]
        subprocess.run([*command, "--measure", str(out)], env=environment, check=True)
        with np.load(out) as file:
            return dict(file)
