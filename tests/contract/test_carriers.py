"""The carriers of GPUs: what they ask of torch is what torch has, and nobody who has died can hold them up."""

import ast
import inspect
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import along
from megatron_nft.weights import collective, cuda_ipc
from megatron_nft.weights.plan import plan_weights
from megatron_nft.weights.wire import WireError
from tests.contract.played_streams import Device, Group

MODEL = "tests/assets/quickstart/model"
AT_ONCE_S = 3.0
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def world():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def device(monkeypatch):
    """Tensors "on" it lie in the host's memory."""
    played, empty = Device(), torch.empty
    played.install(monkeypatch)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **{**options, "device": "cpu"}))
    return played


@pytest.fixture(scope="module")
def plan():
    """Three buckets, a tensor each."""
    hf = read_hf_config(MODEL)
    shapes = {
        "embedding.word_embeddings.weight": (hf.vocab_size, hf.hidden_size),
        "decoder.final_layernorm.weight": (hf.hidden_size,),
        "decoder.layers.0.mlp.linear_fc2.weight": (hf.hidden_size, hf.intermediate_size),
    }
    tensors = [
        (name, torch.full(shape, number)) for number, (name, shape) in zip((1.0, 2.0, 3.0), shapes.items(), strict=True)
    ]
    return plan_weights(tensors, table_of(hf), places=along("tp", 1), dtype=torch.float32, bucket_bytes=1)


class Receivers:
    """Take broadcasts as long as they live; what they took, and what else happened, in order."""

    def __init__(self, device):
        self.device, self.alive, self.log, self.seconds = device, threading.Event(), [], 0.0
        self.groups, self.stores = [], []
        self.alive.set()

    def join(self, store, *_):
        self.stores.append(store)  # as a group of torch's does
        self.groups.append(Group(self.device, self.take))
        return self.groups[-1]

    def take(self, tensor, aborted):
        while not (self.alive.is_set() or aborted.is_set()):
            time.sleep(0.01)
        time.sleep(self.seconds)
        if not aborted.is_set():
            self.log.append(("taken", float(tensor.view(torch.float32)[0])))


@pytest.fixture
def receivers(device, monkeypatch):
    found = Receivers(device)
    monkeypatch.setattr(collective, "_join", found.join)
    return found


@pytest.fixture
def send(world, device, receivers, plan):
    """As a Ray actor's main thread calls it: one after the other, each with a deadline."""
    sender = collective.CollectiveSender(
        plan, stage=0, group=world, device=CUDA, host="127.0.0.1", num_receivers=1, timeout_s=60.0
    )
    thread = ThreadPoolExecutor(1)
    yield lambda index, link: thread.submit(sender.send, index, link).result(AT_ONCE_S)
    receivers.alive.set()
    sender.close()


def test_buckets_are_taken_as_they_were_filled(send, receivers):
    for index in range(3):
        send(index, 0)
    deadline = time.monotonic() + AT_ONCE_S
    while len(receivers.log) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert receivers.log == [("taken", 1.0), ("taken", 2.0), ("taken", 3.0)]


def test_a_dead_receiver_cannot_hold_the_next_link(send, receivers):
    """The bucket that it has not taken lies on the device; the actor goes on, and the next link aborts it."""
    send(0, 0)
    time.sleep(0.2)
    receivers.alive.clear()
    send(1, 0)
    time.sleep(0.2)
    assert receivers.log == [("taken", 1.0)]
    send(2, 0)  # asked for before the death is known; its slot is free
    threading.Timer(0.5, receivers.alive.set).start()  # another in its place
    send(0, 1)
    time.sleep(1.0)
    first, second = receivers.groups
    assert first.aborted.is_set() and not second.aborted.is_set()
    assert receivers.log == [("taken", 1.0), ("taken", 1.0)]


def test_receivers_that_live_are_let_go_too(send, receivers, device):
    """They sit in a broadcast that the dead one will never join: the next link's sender tells them."""
    manifest = send(0, 0)
    receivers.alive.clear()
    receiver, thread = collective.CollectiveReceiver(0, CUDA), ThreadPoolExecutor(1)
    sitting = thread.submit(receiver.receive, manifest)
    time.sleep(1.0)
    assert not sitting.done()
    send(0, 1)
    with pytest.raises(WireError, match=r"bucket 0 of stage 0 did not come .* the sender has left the group"):
        sitting.result(AT_ONCE_S)
    receivers.alive.set()
    again = send(1, 1)
    assert thread.submit(receiver.receive, again).result(AT_ONCE_S).keys() == again.tensors.keys()


def test_a_broadcast_waits_for_its_bucket_and_for_nothing_else(send, receivers, device, monkeypatch):
    """Its bytes are gathered on another stream; a buffer is written again only when its last broadcast was taken."""
    gather = collective.gather_bucket

    def slow_gather(bucket, places, tensors, **rest):
        gather(bucket, places, tensors, **rest)
        number = float(next(iter(tensors.values())).flatten()[0])
        receivers.log.append(("written", number))
        device.current().put(lambda: (time.sleep(0.6), receivers.log.append(("gathered", number))))

    monkeypatch.setattr(collective, "gather_bucket", slow_gather)
    receivers.seconds = 0.2
    start = time.monotonic()
    send(0, 0)
    send(1, 0)
    assert time.monotonic() - start < 0.6, "the actor waits for neither"
    send(2, 0)
    time.sleep(2.0)
    at = receivers.log.index
    for number in (1.0, 2.0, 3.0):
        assert at(("gathered", number)) < at(("taken", number))
    assert at(("taken", 1.0)) < at(("written", 3.0)), "both lie in the first buffer"


def test_a_received_bucket_has_come(device, receivers):
    """Else vLLM would load what lay there before."""
    receivers.seconds = 0.3
    buffer = torch.zeros(4, dtype=torch.uint8)
    collective._broadcast(receivers.join(None), buffer, CUDA)
    assert receivers.log == [("taken", 0.0)]


def test_nccl_takes_what_it_is_given():
    """Up to the GPUs, which it looks for once its arguments are right."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises((ValueError, RuntimeError), match="no GPUs found"):
        collective._join(store, 0, 2, CUDA, timedelta(seconds=1))
    group = dist.ProcessGroupNCCL
    assert callable(group.abort) and callable(group.broadcast)
    assert "opts: torch._C._distributed_c10d.BroadcastOptions" in group.broadcast.__doc__
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0


# --- CUDA IPC --------------------------------------------------------------------------------------------------------


def names_in_torch():
    """What torch.multiprocessing calls the parts of a handle: as they come from _share_cuda_, as _new_shared_cuda has
    them."""
    from torch.multiprocessing import reductions

    def calls(function, method):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and method in ast.unparse(getattr(node.value, "func", node.value)):
                yield node

    (made,) = calls(reductions.reduce_tensor, "_share_cuda_")
    (opened,) = calls(reductions.rebuild_cuda_tensor, "_new_shared_cuda")
    given = [name.id for name in made.targets[0].elts]
    return given, [argument.id for argument in opened.value.args]


def test_a_handle_has_torchs_parts_in_torchs_order(monkeypatch):
    given, wanted = names_in_torch()
    shared = {"device": "storage_device", "handle": "storage_handle"}
    assert [shared.get(name, name) for name in given] == wanted
    values = {name: name.encode() if "handle" in name else f"<{name}>" for name in wanted}
    monkeypatch.setattr(torch.UntypedStorage, "_share_cuda_", lambda self: tuple(values.values()), raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 7)
    opened = []

    class Opened(BaseException):
        pass

    def open_it(*arguments):
        opened.extend(arguments)
        raise Opened

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", open_it, raising=False)
    handle = cuda_ipc._handle(torch.zeros(12, dtype=torch.uint8))
    assert handle[-1] == 12 and all(isinstance(part, str | int) for part in handle), "plain JSON"
    with pytest.raises(Opened):
        cuda_ipc._open(handle)
    assert opened == [7, *list(values.values())[1:]], "on the reader's own device"


def test_buffers_of_ranks_that_have_ended_are_closed(world, device, plan, monkeypatch):
    """The ranks are started again: their memory would stay with the engines."""
    opened = {}

    def open_it(handle):
        buffer = torch.zeros(plan.largest_bucket_bytes, dtype=torch.uint8)
        opened[handle] = weakref.ref(buffer)
        return buffer

    monkeypatch.setattr(cuda_ipc, "_uuid", lambda: "GPU-0")
    monkeypatch.setattr(cuda_ipc, "_handle", lambda slot: f"{id(slot)}")
    monkeypatch.setattr(cuda_ipc, "_open", open_it)
    receiver = cuda_ipc.CudaIpcReceiver()

    def sync():
        sender = cuda_ipc.CudaIpcSender(plan, group=world, pp_group=world, world=world)
        for index in range(sender.num_rounds):
            assert receiver.receive(sender.send(index, 0))
        return sender

    first = sync()
    of_first = list(opened)
    assert len(of_first) == 2 and all(opened[handle]() is not None for handle in of_first)
    second = sync()
    of_second = opened.keys() - of_first
    assert len(of_second) == 2 and first is not second
    assert all(opened[handle]() is None for handle in of_first)
    assert all(opened[handle]() is not None for handle in of_second)
