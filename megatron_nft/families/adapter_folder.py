"""A PEFT folder: whether it holds the adapters that a recipe asks for. Reads headers only; no heavy imports.

A folder comes in, a ModelFolderError goes out. Asked when a recipe with lora.adapter is loaded.
"""

from pathlib import Path

from megatron_nft.families.config_json import read_json
from megatron_nft.families.family import HFConfig, ModelFolderError
from megatron_nft.families.lora import Adapters, adapter_shapes
from megatron_nft.families.weight_files import check_format, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = {
    "peft_type": "LORA", "use_dora": False, "use_qalora": False, "lora_bias": False, "bias": "none", "rank_pattern": {},
    "alpha_pattern": {}, "modules_to_save": None, "layer_replication": None, "target_parameters": None,
    "fan_in_fan_out": False,
}  # fmt: skip
"""What a plain LoRA's config says of PEFT's other kinds, if anything."""


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
    for key, plain in PLAIN.items():
        if (value := given.get(key)) not in (plain, None, False, {}, []):
            raise ModelFolderError(f"{folder / CONFIG}: {key} = {value!r} is not supported; give a plain LoRA adapter")
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
