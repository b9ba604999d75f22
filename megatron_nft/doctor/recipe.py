"""What a recipe needs of this machine: a readable model, readable data, a run folder that can be written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_nft.data.vocabulary import VOCABULARY_FILES
from megatron_nft.doctor.data import DataCheck
from megatron_nft.doctor.findings import Finding, fail, ok
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.run_folder import check_run_folder

GIB = 1 << 30
OTHER_MODEL = "give the folder of a model as it was published"
APART_TIMEOUT_S = 120
OWN_GRADERS = ("have the modules do less when they are imported", "mend verdict.modes, or what it names")
OWN_VLLM = ("try again on a machine that is less busy", "mend rollout.vllm")


def check_recipe(machine: Machine, recipe: str, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """All of it."""
    try:
        from megatron_nft.config import RecipeError, load_config
        from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
        from megatron_nft.families.serving import check_served
    except ImportError as error:
        yield fail("recipe", recipe, f"it can't be read: {error}", "install the requirements first")
        return
    try:
        config = load_config(recipe, overrides, checks_weights=False)
    except (RecipeError, ModelFolderError) as error:
        yield fail("recipe", recipe, str(error), "mend the recipe, or override the setting: section.key=value")
        return
    yield ok("recipe", f"{recipe}: {config.actor.layout}")
    if config.cluster.device == "cuda" and machine.driver is None:
        yield fail(
            "device",
            "no NVIDIA driver",
            'cluster.device = "cuda"',
            'run it on a GPU machine, or set cluster.device="cpu"',
        )
    if config.cluster.device == "cpu" and machine.is_for_gpus:
        reason = 'cluster.device = "cpu", and the installed packages are for GPUs: that vLLM has no CPU engine'
        yield fail("device", "engines on a CPU", reason, "run it in the environment that launch/install.sh makes")
    folder = Path(config.model.path)
    data = DataCheck(config.data, config.model.hf_folder)
    yield from check_model(folder)
    try:
        check_served(
            read_hf_config(folder), folder, max_tokens=config.max_sequence_tokens, device=config.cluster.device
        )
    except ModelFolderError as error:
        yield fail("engine", str(folder), str(error), OTHER_MODEL)
    if config.model.reference is not None and (wrong := _wrong_weights(Path(config.model.reference))):
        yield fail("reference", config.model.reference, wrong, OTHER_MODEL)
    yield from data.findings(machine)
    graders = ", ".join(dict.fromkeys(mode for mode in config.verdict.modes.values() if ":" in mode))
    yield from check_apart("graders", graders, "megatron_nft.verdict.check", [recipe, *overrides], OWN_GRADERS)
    settings = ", ".join(f"{name} = {value!r}" for name, value in config.rollout.vllm.items())
    yield from check_apart("engine", settings, "megatron_nft.rollout.vllm.arguments", [recipe, *overrides], OWN_VLLM)
    yield from check_run_folder(machine, config, read_hf_config(folder))


def check_model(folder: Path) -> Iterator[Finding]:
    """Every file that the index names, and a tokenizer."""
    index = folder / "model.safetensors.index.json"
    remedy = "download the model again, and compare the sizes with the hub's"
    try:
        named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        yield fail("model", str(index), f"it can't be read: {error}", remedy)
        return
    broken = [n for n in sorted(named) if not os.access(folder / n, os.R_OK) or (folder / n).stat().st_size == 0]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        yield fail(
            "model", f"{folder}: {len(broken)} of {len(named)} files", f"missing, empty or unreadable: {shown}", remedy
        )
    elif not any((folder / name).is_file() for name in VOCABULARY_FILES):
        yield fail("model", str(folder), f"no tokenizer (none of {', '.join(VOCABULARY_FILES)})", remedy)
    elif wrong := _wrong_weights(folder):
        yield fail("model", str(folder), wrong, OTHER_MODEL)
    else:
        yield ok("model", f"{folder}: {len(named)} files, {_size(folder) / GIB:.2f} GiB")


def _wrong_weights(folder: Path) -> str | None:
    """What they are beside the model of config.json, in training's words; None: that model's."""
    from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
    from megatron_nft.families.weight_files import check_weights

    try:
        check_weights(folder, read_hf_config(folder))
    except ModelFolderError as error:
        return str(error)
    return None


def check_apart(
    check: str, value: str, module: str, arguments: Sequence[str], remedies: tuple[str, str]
) -> Iterator[Finding]:
    """By the room's own check, in a process of its own: to import a module is to run it.

    Args:
        value: what is checked; empty: the recipe has none of it.
        remedies: if it takes too long, and if something is wrong.
    """
    if not value:
        return
    command = [sys.executable, "-m", module, *arguments]
    try:
        checked = subprocess.run(command, capture_output=True, text=True, timeout=APART_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        yield fail(check, value, f"not checked within {APART_TIMEOUT_S} s", remedies[0])
        return
    if checked.returncode:
        yield fail(check, value, checked.stderr.strip(), remedies[1])
    else:
        yield ok(check, value)


def _size(folder: Path) -> int:
    """Bytes of the model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
