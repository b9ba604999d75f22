"""Weights between processes by a carrier: GB/s beside a copy on the device, and what a receiver's death costs.

    python -m tests.gpu.prove.carriers cuda_ipc
    python -m tests.gpu.prove.carriers collective

Two receivers for NCCL. Where there is one device, all three processes are on it, as NCCL allows only to processes that
it takes for different hosts': the bytes then go through sockets. Dry: shared memory in the place of CUDA IPC, and gloo.
"""

import multiprocessing
import os
import sys
import time
from typing import Any

import torch

from tests.gpu.prove.report import figure, is_dry

WARM, TIMED = 2, 5
LAYERS, HIDDEN, FEATURES = 4, 3584, 18944
"""Qwen2.5-7B's: 1.6 GB of MLPs."""
BUCKET_BYTES = 256 << 20
DEADLINE_S = 60.0


def main(carrier: str) -> None:
    used = "shared_memory" if is_dry() and carrier == "cuda_ipc" else carrier
    several = torch.cuda.device_count() > 1 and carrier == "collective"
    sender = Remote(_send, used, 0, not several)
    places = (0, 1) if carrier == "collective" else (0,)
    receivers = [Remote(_receive, used, place, not several) for place in places]
    rounds, seconds, size = sender.ask("rounds"), [], 0
    for turn in range(WARM + TIMED):
        start, size = time.perf_counter(), 0
        for index in range(rounds):
            size += _one(sender, receivers, index, 0, checks=turn == 0)
        seconds.append(time.perf_counter() - start)
    figure(
        f"{used}: sync of {size / 1e9:.2f} GB",
        min(seconds[WARM:]),
        "s",
        "in processes of one device" if not several else "",
    )
    figure(f"{used}: rate", size / 1e9 / min(seconds[WARM:]), "GB/s", f"{len(receivers)} receivers copy what comes")
    figure("copy on the device", receivers[0].ask("copy", size), "GB/s")
    if carrier == "collective":
        _a_receiver_dies(sender, receivers)
    for process in (sender, *receivers):
        process.end()


def _one(sender: "Remote", receivers: list["Remote"], index: int, link: int, *, checks: bool = False) -> int:
    """A bucket to all receivers; its bytes."""
    manifest = sender.ask("send", index, link)
    for receiver in receivers:
        receiver.begin("receive", manifest, checks)
    return max(receiver.answer() for receiver in receivers)


def _a_receiver_dies(sender: "Remote", receivers: list["Remote"]) -> None:
    """In the middle of a bucket. The sender's calls return, the other receiver is let go, and the next link works."""
    _one(sender, receivers, 0, 0)
    receivers[1].kill()
    manifest = sender.ask("send", 1, 0)
    receivers[0].begin("receive", manifest, False)
    time.sleep(2.0)
    receivers[1] = Remote(_receive, "collective", 1, receivers[0].alone)
    receivers[1].ask("copy", 1)  # it is up
    start = time.perf_counter()
    manifest = sender.ask("send", 0, 1)
    figure("next link after a death: send returns", time.perf_counter() - start, "s")
    try:
        receivers[0].answer()
        said = "it had the bucket: the bytes did not pass through the dead one"
    except RuntimeError as error:
        said = str(error)[:120]
    figure("the receiver that lives is free", time.perf_counter() - start, "s", said)
    for receiver in receivers:
        receiver.begin("receive", manifest, True)
    assert all(receiver.answer() for receiver in receivers)
    figure("first bucket of the next link came", time.perf_counter() - start, "s")


# --- Processes -------------------------------------------------------------------------------------------------------


class Remote:
    """A process that answers one call after the other, each within DEADLINE_S."""

    def __init__(self, serve: Any, carrier: str, place: int, alone: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.alone = alone
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(serve, theirs, carrier, place, alone), daemon=True)
        self._process.start()

    def begin(self, verb: str, *arguments: Any) -> None:
        self._pipe.send((verb, arguments))

    def answer(self) -> Any:
        if not self._pipe.poll(DEADLINE_S):
            raise TimeoutError(f"no answer within {DEADLINE_S:g} s")
        result, error = self._pipe.recv()
        if error:
            raise RuntimeError(error)
        return result

    def ask(self, verb: str, *arguments: Any) -> Any:
        self.begin(verb, *arguments)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    end = kill


def _run(serve: Any, pipe: Any, carrier: str, place: int, alone: bool) -> None:
    if alone:  # NCCL refuses two ranks on a device of one host
        os.environ |= {"NCCL_HOSTID": f"{serve.__name__}{place}", "NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo"}
    verbs = serve(carrier, place, alone)
    while True:
        try:
            verb, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((verbs[verb](*arguments), None))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))


def _device(number: int) -> torch.device:
    if is_dry():
        return torch.device("cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _send(carrier: str, place: int, alone: bool) -> dict[str, Any]:
    """A trainer of one rank, each of whose tensors holds one number."""
    import torch.distributed as dist

    from megatron_nft.families.hf_config import read_hf_config
    from megatron_nft.families.registry import table_of
    from megatron_nft.families.rules import along
    from megatron_nft.weights import collective, cuda_ipc, shared_memory
    from megatron_nft.weights.plan import plan_weights

    device, store = _device(0), dist.HashStore()
    dist.init_process_group("gloo" if is_dry() else "nccl", store=store, rank=0, world_size=1)
    hidden, features = (8, 24) if is_dry() else (HIDDEN, FEATURES)
    named = [
        (f"decoder.layers.{layer}.mlp.linear_fc{number}.weight", torch.full(shape, layer + number / 2, device=device,
                                                                            dtype=torch.bfloat16))
        for layer in range(LAYERS)
        for number, shape in ((1, (2 * features, hidden)), (2, (hidden, features)))
    ]  # fmt: skip
    hf = read_hf_config("tests/assets/quickstart/model")
    table = table_of(_sized(hf, hidden, features))
    plan = plan_weights(named, table, places=along("tp", 1), dtype=torch.bfloat16,
                        bucket_bytes=1 if is_dry() else BUCKET_BYTES)  # fmt: skip
    world = dist.group.WORLD
    if carrier == "cuda_ipc":
        sender = cuda_ipc.CudaIpcSender(plan, group=world, pp_group=world, world=world)
    elif carrier == "shared_memory":
        sender = shared_memory.SharedMemorySender(plan, stage=0, group=world, device=device, checksums=False)
    else:
        sender = collective.CollectiveSender(plan, stage=0, group=world, device=device, host="127.0.0.1",
                                             num_receivers=2, timeout_s=DEADLINE_S)  # fmt: skip
    return {"rounds": lambda: sender.num_rounds, "send": lambda index, link: sender.send(index, link).to_dict()}


def _sized(hf: Any, hidden: int, features: int) -> Any:
    from dataclasses import replace

    return replace(hf, hidden_size=hidden, intermediate_size=features, num_hidden_layers=LAYERS)


def _receive(carrier: str, place: int, alone: bool) -> dict[str, Any]:
    """An engine's worker, which copies what comes, as an engine does."""
    from megatron_nft.weights.carriers import make_receiver
    from megatron_nft.weights.wire import BucketManifest

    device = _device(0 if alone else 1 + place % max(1, torch.cuda.device_count() - 1))
    receiver = make_receiver(carrier, place, device)

    def receive(plain: dict[str, Any], checks: bool) -> int:
        manifest = BucketManifest.from_dict(plain)
        mine = {name: tensor.clone() for name, tensor in receiver.receive(manifest).items()}
        for name, tensor in mine.items() if checks else ():
            expected = int(name.split(".")[2]) + (1 if "down_proj" in name else 0.5)
            assert bool((tensor == expected).all()), f"{name} is not what was sent"
        _synchronize(device)
        return manifest.num_bytes

    def copy(size: int) -> float:
        source = torch.ones(size, dtype=torch.uint8, device=device)
        source.clone()
        _synchronize(device)
        start = time.perf_counter()
        source.clone()
        _synchronize(device)
        return size / 1e9 / (time.perf_counter() - start)

    return {"receive": receive, "copy": copy}


def _synchronize(device: torch.device) -> None:
    """This stream's work, not that of a broadcast that nobody takes."""
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
