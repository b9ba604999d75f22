"""Log-probs at a vocabulary of 152,064: seconds and memory, beside torch's log_softmax of all logits in fp32.

python -m tests.gpu.prove.logprobs
"""

import time

import torch
import torch.distributed as dist

from megatron_nft.actor.logprobs import label_logprobs
from tests.gpu.prove.models import SHAPES, TINY_VOCABULARY, VOCABULARY, device, synchronize
from tests.gpu.prove.report import figure, is_dry

TOKENS, LOGITS_BYTES = 8192, 512 << 20
"""Answer tokens of a microbatch, and actor.logits_mib's default."""


def measure(what: str, logprobs_of, *tensors) -> tuple[torch.Tensor, float]:
    """Its log-probs and seconds, forward and backward, and what it takes beside its arguments."""
    for _ in range(2):  # the first chooses kernels
        for tensor in tensors:
            tensor.grad = None
        synchronize()
        before = 0
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        logprobs = logprobs_of()
        logprobs.sum().backward()
        synchronize()
        seconds = time.perf_counter() - start
    figure(f"{what}: forward and backward", seconds * 1e3, "ms")
    if device().type == "cuda":
        figure(f"{what}: memory", (torch.cuda.max_memory_allocated() - before) / 2**30, "GiB")
    return logprobs.detach(), seconds


def main() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if not is_dry():
        dist.destroy_process_group()
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    tokens, vocabulary = (64, TINY_VOCABULARY) if is_dry() else (TOKENS, VOCABULARY)
    for shape, size in SHAPES.items():
        width = 32 if is_dry() else size["hidden_size"]
        torch.manual_seed(0)
        make = {"device": device(), "dtype": torch.bfloat16}
        hidden = torch.randn(tokens, width, **make).requires_grad_()
        weight = (torch.randn(vocabulary, width, **make) / width**0.5).requires_grad_()
        labels = torch.randint(0, vocabulary, (tokens,), device=device())
        setting = {"temperature": 1.0, "vocab_size": vocabulary, "group": dist.group.WORLD}

        def ours(hidden=hidden, weight=weight, labels=labels, setting=setting):
            return label_logprobs(hidden, weight, labels, **setting, logits_bytes=LOGITS_BYTES)[0]

        def whole(hidden=hidden, weight=weight, labels=labels):
            return torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, labels[:, None])[:, 0]

        mine, seconds = measure(f"{shape}, {tokens} tokens, in blocks", ours, hidden, weight)
        figure(f"{shape}: products", 3 * 2 * tokens * vocabulary * width / seconds / 1e12, "TFLOP/s")
        theirs, _ = measure(f"{shape}, {tokens} tokens, all logits", whole, hidden, weight)
        gap = (mine - theirs).abs().max().item()
        figure(f"{shape}: largest difference", gap, "nats")
        assert gap < 0.1, f"{shape}: log-probs in blocks differ by {gap} from torch's"
        del hidden, weight, labels, ours, whole, mine, theirs
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
