"""A PEFT folder: whether it holds the adapters that a recipe asks for. Reads headers only; no heavy imports.

A folder comes in, a ModelFolderError goes out. Asked when a recipe with lora.adapter is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import read_json
from megatron_nft.families.family import HFConfig, ModelFolderError
from megatron_nft.families.lora import Adapters, adapter_shapes
from megatron_nft.families.weight_files import check_format, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OFF: dict[str, tuple[Any, ...]] = {"peft_type": ("LORA",), "bias": ("none",)}
"""Key -> values beside null, false and an empty list or object at which it is plain LoRA's."""
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Of `init_lora_weights`: A and B begin otherwise, and the model beside them stays as it is."""
HARMLESS = frozenset({
    "r", "lora_alpha", "use_rslora", "init_lora_weights",  # compared below
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",  # the tensors say what came of them
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_config", "megatron_core", "runtime_config",  # how peft runs it
    "qalora_group_size", "ensure_weight_tying",  # of kinds that other keys switch on
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # of init_lora_weights
})  # fmt: skip
"""Keys at whose every value it is plain LoRA. One that stands nowhere here may be of a newer PEFT's other kind."""


def check_adapter(folder: str | Path, hf: HFConfig, adapters: Adapters) -> None:
    """
    Raises:
        ModelFolderError: it is no PEFT folder, of another kind than plain LoRA, or of another rank, scale, targets or
            model than the recipe's.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ModelFolderError(f"lora.adapter = {str(folder)!r}: has no {CONFIG}; give a folder that peft has saved")
    given = read_json(folder / CONFIG)
    _check_plain(folder / CONFIG, given)
    for setting, key, wanted in (
        ("rank", "r", adapters.rank),
        ("alpha", "lora_alpha", adapters.alpha),
        ("rslora", "use_rslora", adapters.rslora),
    ):
        if (value := given.get(key, False if key == "use_rslora" else None)) != wanted:
            raise ModelFolderError(f"{folder / CONFIG}: {key} = {value!r}, and lora.{setting} = {wanted!r}; set it so")
    tensors = read_tensors(folder, WEIGHTS)
    expected = adapter_shapes(hf, adapters)
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        where = "missing" if wrong[0] in expected else "left over"
        raise ModelFolderError(
            f"{folder}: {len(wrong)} tensors are not those of lora.targets = {list(adapters.targets)} in this model; "
            f"{wrong[0]!r} is {where}"
        )
    for name, shape in expected.items():
        check_format(folder, name, tensors[name].dtype)
        if tensors[name].shape != shape:
            raise ModelFolderError(f"{folder}: {name} is {tensors[name].shape}, by config.json it is {shape}")


def _check_plain(file: Path, given: Mapping[str, Any]) -> None:
    """Whether the adapted model is the model plus scale B A, and nothing else is changed."""
    if (start := given.get("init_lora_weights")) not in PLAIN_STARTS:
        raise ModelFolderError(
            f"{file}: init_lora_weights = {start!r}: peft changes the model itself when it loads this adapter, and "
            "here it stays as it is; have peft save it as plain LoRA (save_pretrained with "
            "path_initial_model_for_weight_conversion), or merge it (merge_and_unload) and give that as model.path"
        )
    for key, value in given.items():
        if key not in HARMLESS and value not in (None, False, [], {}, *OFF.get(key, ())):
            raise ModelFolderError(
                f"{file}: {key} = {value!r} is not supported, or not known here; give a plain LoRA adapter, or, if "
                "peft can merge it into its model (merge_and_unload), that as model.path"
            )
