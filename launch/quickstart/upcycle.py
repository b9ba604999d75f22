"""The quickstart's dense base as a mixture of experts that answers as it does: what quickstart_moe.toml trains.

    python launch/quickstart/upcycle.py --out runs/quickstart_moe_base

A Qwen2-MoE of 6.6 M parameters: each of 8 experts is the dense model's MLP with 2% of noise on every number, so that
experts differ and routing is seen to matter; a token has 2 of them, whose weights add up to 1; the shared expert adds
nothing at first. Takes a second, and always gives the same numbers.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.weight_files import check_weights
from megatron_nft.weights.export import copy_side_files

DENSE = Path("tests/assets/quickstart/model")
NUM_EXPERTS, EXPERTS_PER_TOKEN, SHARED_SIZE = 8, 2, 32
NOISE, ROUTER_SCALE = 0.02, 0.02


def upcycle(dense: Path, out: Path) -> None:
    """Writes the mixture, with the dense model's tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    copy_side_files(dense, out)
    config = json.loads((dense / "config.json").read_text())
    config |= {
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "norm_topk_prob": True,
        "moe_intermediate_size": config["intermediate_size"],
        "shared_expert_intermediate_size": SHARED_SIZE,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = load_file(dense / "model.safetensors")
    numbers = torch.Generator().manual_seed(0)
    mixture = {name: tensor for name, tensor in tensors.items() if ".mlp." not in name}
    for layer in range(config["num_hidden_layers"]):
        mixture |= dict(_experts(f"model.layers.{layer}.mlp", tensors, numbers))
    save_file(mixture, out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read
    check_weights(out, read_hf_config(out))


def _experts(mlp: str, tensors: dict[str, Tensor], numbers: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    matrices = {name: tensors[f"{mlp}.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")}
    hidden = matrices["gate_proj"].shape[1]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers)

    yield f"{mlp}.gate.weight", ROUTER_SCALE * random(NUM_EXPERTS, hidden)
    for expert in range(NUM_EXPERTS):
        for name, matrix in matrices.items():
            yield f"{mlp}.experts.{expert}.{name}.weight", matrix * (1 + NOISE * random(*matrix.shape))
    for name in ("gate_proj", "up_proj"):
        yield f"{mlp}.shared_expert.{name}.weight", ROUTER_SCALE * random(SHARED_SIZE, hidden)
    yield f"{mlp}.shared_expert.down_proj.weight", torch.zeros(hidden, SHARED_SIZE)
    yield f"{mlp}.shared_expert_gate.weight", ROUTER_SCALE * random(1, hidden)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    upcycle(DENSE, arguments.out)
    print(f"{arguments.out}: {DENSE} with {NUM_EXPERTS} experts a layer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
