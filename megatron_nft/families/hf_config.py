"""The one place that decides what a model folder is, and what its config.json says.

A folder comes in, a typed `HFConfig` goes out, by the family that its model_type names. config checks layouts against
it, actor/model.py builds the Megatron model from it, the planner counts by it. No heavy imports.
"""

from pathlib import Path

from megatron_nft.families.adapter_folder import CONFIG as ADAPTER_CONFIG
from megatron_nft.families.config_json import read_json
from megatron_nft.families.family import HFConfig, ModelFolderError
from megatron_nft.families.registry import families

SIDE_FILES = "hf"
"""Folder in a Megatron checkpoint, with the config and the tokenizer of its model."""
WHY_NOT = {
    "deepseek_v2": "latent attention", "deepseek_v3": "latent attention, a router with sigmoids, a bias and groups",
    "kimi_k2": "latent attention, a router with sigmoids, a bias and groups",
    "glm4_moe": "a router with sigmoids and a bias",
    "gpt_oss": "attention sinks, windows on every other layer, experts with biases and clamps",
    "qwen3_next": "linear attention", "llama4": "chunked attention, weights of experts on their inputs",
}  # fmt: skip
"""Of mixtures that are asked for: what the actor has not."""


def is_megatron_folder(folder: str | Path) -> bool:
    """Whether a folder is a checkpoint in Megatron's torch_dist format."""
    return (Path(folder) / "metadata.json").is_file()


def kind_of(folder: str | Path) -> str:
    """What a folder is that was given for one of another kind, and what of it would do: "; a ..."; "" if it is none
    that is known."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return (
            "; it is an HF folder: megatron-nft evaluate --model and a recipe's model.path take it as it is, "
            "megatron-nft convert hf-to-megatron makes a checkpoint of it"
        )
    if is_megatron_folder(folder):
        return "; it is a Megatron checkpoint: megatron-nft convert megatron-to-hf makes an HF folder of it"
    if (folder / ADAPTER_CONFIG).is_file():
        return "; it is a PEFT folder, of adapters: a recipe's lora.adapter takes it, here its base model is meant"
    if (folder / "checkpoints").is_dir():
        model = f", its model {folder / 'hf'}" if (folder / "hf" / "config.json").is_file() else ""
        return f"; it is a run's folder: the newest checkpoint is {folder / 'checkpoints' / 'latest'}{model}"
    if (folder / "latest").is_dir():
        return f"; it has a run's checkpoints: the newest is {folder / 'latest'}"
    return ""


def hf_side(folder: str | Path) -> Path:
    """Where a model folder has config.json and tokenizer: HF's in itself, a Megatron checkpoint's in hf/."""
    return Path(folder) / SIDE_FILES if is_megatron_folder(folder) else Path(folder)


def read_hf_config(folder: str | Path, named: str = "model.path") -> HFConfig:
    """Reads the config.json of an HF folder or of a Megatron checkpoint.

    Args:
        named: the setting or argument that it was given by, for the errors.

    Raises:
        ModelFolderError: no such folder, no config.json, or a family that is not supported.
    """
    if not Path(folder).is_dir():
        raise ModelFolderError(f"{named} = {str(folder)!r}: no such folder; give a local HF model folder")
    folder = hf_side(folder)
    try:
        raw = read_json(folder / "config.json")
    except FileNotFoundError:
        if folder.name == SIDE_FILES and is_megatron_folder(folder.parent):
            raise ModelFolderError(
                f"{folder.parent}: a Megatron checkpoint without {SIDE_FILES}/config.json; put the config and "
                f"tokenizer of its model into {folder}"
            ) from None
        raise ModelFolderError(
            f"{named} = {str(folder)!r}: has no config.json, so it is not an HF model{kind_of(folder)}"
        ) from None
    known, model_type = families(), raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        why = f" ({WHY_NOT[model_type]})" if isinstance(model_type, str) and model_type in WHY_NOT else ""
        raise ModelFolderError(
            f"{folder / 'config.json'}: model_type {model_type!r} is not supported{why}; supported: {', '.join(known)}"
        )
    return known[model_type].read(raw, folder / "config.json")
