"""The engine's side of the weight transfer: buckets (weights/wire) come in, vLLM's running model gets new weights.

engine.py calls it through vLLM's native API (init, start, update per bucket, finish). Importing this module
registers the backend "megatron_nft"; `RegisterBackend` makes vLLM's worker processes import it too.

Adapted to vLLM 0.32.0. What is particular to it:
- Its worker ends a session when `update_weights` raises, but stays in it when `finish_weight_update` raises, and then
  refuses every later start. So completeness is checked by a last update without a manifest ("end of stream"), not in
  finish. Remove when finish_weight_update ends the session in every case.
- An interrupted layerwise reload keeps the tensors that it had buffered and would mix them into the next one. So an
  interrupted update is finalized, which leaves wrong weights but a model that can be loaded again.
  Remove when initialize_layerwise_reload starts afresh.
- A layer that has not all of its tensors yet holds on to those it has, or to views of them (experts). They get memory
  of their own, since a bucket's is written again (`_own_what_waits`). Remove when load_weights copies them.
- Experts are put into the CPU kernel's format by the first load only, so later weights would be read in another
  (`_prepack_experts`). Remove when UnquantizedFusedMoEMethod does so in every load.
- That format pads experts whose size is no multiple of 32, and a layerwise reload copies into what it finds, which is
  then of another shape (`_unpad_experts`). Remove when it takes the processed tensors as they are.
- Layerwise reload doesn't prepare a tied lm_head again, so on a CPU its packed copy keeps the old embedding. Remove
  when tests/e2e/test_engine.py passes without `_refresh_tied_lm_head`.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.utils import replace_parameter

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import adapter_shapes
from megatron_nft.families.parameters import parameters
from megatron_nft.rollout.vllm import adapter
from megatron_nft.rollout.vllm.experts import CapturesExperts
from megatron_nft.weights.carriers import make_receiver
from megatron_nft.weights.wire import BucketManifest, Receiver

BACKEND = "megatron_nft"
EXTENSION = f"{__name__}.RegisterBackend"

TIED_HEAD = "lm_head.weight"  # optional where embeddings are tied: vLLM reads the embedding instead


class WeightUpdateError(RuntimeError):
    """An update does not bring exactly the engine's parameters. The message names those that are wrong."""


@dataclass
class BucketInitInfo(WeightTransferInitInfo):
    names: list[str]  # HF names of all parameters that an update brings
    place: int  # of this engine's first worker among the workers of all engines
    adapters: dict[str, Any] | None = None  # the tensors are theirs, and the model stays as it is


@dataclass
class BucketUpdateInfo(WeightTransferUpdateInfo):
    manifest: dict[str, Any] | None  # BucketManifest.to_dict(); None: end of the stream


class BucketReceiver(WeightTransferEngine[BucketInitInfo, BucketUpdateInfo]):
    """Loads buckets of full HF tensors; of each, vLLM's weight loaders take this worker's tensor-parallel slice."""

    init_info_cls = BucketInitInfo
    update_info_cls = BucketUpdateInfo

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.receivers: dict[str, Receiver] = {}  # by carrier

    def init_transfer_engine(self, init_info: BucketInitInfo) -> None:
        """Takes the names that updates will bring, and checks them against those of the engine's architecture.

        Raises:
            WeightUpdateError: a name is missing, unknown, or given twice. No weight has been touched.
        """
        hf = read_hf_config(self.model_config.model)
        self.adapters = init_info.adapters and adapter.from_plain(init_info.adapters)
        self.shapes = {name: shape for parameter in parameters(hf) for name, shape in parameter.hf_shapes.items()}
        if self.adapters:
            self.shapes = adapter_shapes(hf, self.adapters)
        optional = {TIED_HEAD} if hf.tie_word_embeddings else set()
        _check_names("the sender's list", init_info.names, set(self.shapes), optional)
        self.expected = set(init_info.names)
        self.place = init_info.place + self.parallel_config.rank

    def start_weight_update(self) -> None:
        self.arrived: set[str] = set()
        self.tensors: dict[str, Tensor] = {}  # of adapters
        if not self.adapters:
            self._unpad_experts()
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        """Loads one bucket, or checks at the end of the stream that everything has come.

        Raises:
            WireError: the bucket is not what its manifest says.
            WeightUpdateError: a tensor is unknown, came twice or has the wrong shape or dtype, or the stream ended too
                early.
        """
        try:
            if update_info.manifest is None:
                _check_names("the stream", list(self.arrived), self.expected)
            else:
                self._load(BucketManifest.from_dict(update_info.manifest))
        except BaseException:
            if not self.adapters:
                finalize_layerwise_reload(self.model, self.model_config)
            raise

    def finish_weight_update(self) -> None:
        if self.adapters:
            return
        finalize_layerwise_reload(self.model, self.model_config)
        self._refresh_tied_lm_head()
        self._prepack_experts()

    def install_adapters(self) -> None:
        """Puts the adapters that an update has brought in place. After it: vLLM's worker forgets its own at the end."""
        adapter.install(self.model, read_hf_config(self.model_config.model), self.adapters, self.tensors)

    def shutdown(self) -> None:
        for receiver in self.receivers.values():
            receiver.close()

    def _load(self, manifest: BucketManifest) -> None:
        if manifest.carrier not in self.receivers:
            self.receivers[manifest.carrier] = make_receiver(manifest.carrier, self.place, self.device)
        bucket = self.receivers[manifest.carrier].receive(manifest)
        unknown = sorted(bucket.keys() - self.expected)
        twice = sorted(bucket.keys() & self.arrived)
        if unknown or twice:
            raise WeightUpdateError(f"{manifest.bucket}: unknown {unknown}, came twice {twice}")
        for name, tensor in bucket.items():
            if (shape := tuple(tensor.shape)) != self.shapes.get(name, shape):
                raise WeightUpdateError(
                    f"{manifest.bucket}: {name} has shape {shape}, by the engine's config.json it has "
                    f"{self.shapes[name]}; do actor and engines start from the same model.path?"
                )
            if tensor.dtype != self.model_config.dtype:
                raise WeightUpdateError(
                    f"{name} has dtype {tensor.dtype}, the engine's is {self.model_config.dtype}; cast it "
                    "before sending, or the engine would keep parameters of mixed dtypes"
                )
        self.arrived |= bucket.keys()
        if self.adapters:
            self.tensors |= {name: tensor.to("cpu", copy=True) for name, tensor in bucket.items()}
            return
        self.model.load_weights(bucket.items())
        self._own_what_waits({tensor.untyped_storage().data_ptr() for tensor in bucket.values()})

    def _own_what_waits(self, lent: Set[int]) -> None:
        """
        Args:
            lent: addresses of the bucket's memory.
        """
        for layer in self.model.modules():
            for _, call in get_layerwise_info(layer).loaded_weights:
                for name, value in call.arguments.items():
                    is_tensor = isinstance(value, torch.Tensor) and not value.is_meta
                    if is_tensor and value.untyped_storage().data_ptr() in lent:
                        call.arguments[name] = value.clone()

    def _prepack_experts(self) -> None:
        for layer, kernel in self._expert_layers():
            kernel.fused_experts.process_weights_after_loading(layer)

    def _unpad_experts(self) -> None:
        """Gives padded weights room of their own size in place of the old values, of which all will be written anew."""
        for layer, _ in self._expert_layers():
            for name, unpadded in get_layerwise_info(layer).restore_metadata[0].items():
                if getattr(layer, name).shape != unpadded.shape:
                    replace_parameter(layer, name, torch.empty(unpadded.shape, dtype=unpadded.dtype))

    def _expert_layers(self) -> Iterator[tuple[torch.nn.Module, Any]]:
        """On a CPU: each layer with experts, and its kernel."""
        for layer in self.model.modules() if self.device.type == "cpu" else ():
            if (kernel := getattr(getattr(layer, "quant_method", None), "moe_kernel", None)) is not None:
                yield layer, kernel

    def _refresh_tied_lm_head(self) -> None:
        if self.model_config.hf_config.tie_word_embeddings:
            lm_head = self.model.lm_head
            lm_head.quant_method.process_weights_after_loading(lm_head)


class RegisterBackend(CapturesExperts):
    """A vLLM worker extension (`EXTENSION`): naming it makes every worker import this module."""

    def install_adapters(self) -> None:
        """Of this worker's `BucketReceiver`."""
        self.weight_transfer_engine.install_adapters()


def _check_names(what: str, names: list[str], expected: set[str], optional: Set[str] = frozenset()) -> None:
    missing = sorted(expected - set(names))
    unexpected = sorted(set(names) - expected - optional)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if missing or unexpected or twice:
        raise WeightUpdateError(f"{what}: missing {_few(missing)}, unexpected {_few(unexpected)}, twice {_few(twice)}")


def _few(names: list[str]) -> str:
    return str(names) if len(names) <= 8 else f"{names[:8]} and {len(names) - 8} more"


WeightTransferEngineFactory.register_engine(BACKEND, BucketReceiver)
