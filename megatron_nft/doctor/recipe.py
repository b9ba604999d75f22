"""What a recipe needs of this machine: a readable model, readable data, a run folder that can be written."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.packages import check_fusion

GIB = 1 << 30
TOKENIZER = ("tokenizer.json", "tokenizer.model")
HUB_NAME_PARTS = 2
"""owner/name."""
OTHER_MODEL = "give the folder of a model as it was published"
GRADERS_TIMEOUT_S = 120


def check_recipe(machine: Machine, recipe: str, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """All of it."""
    try:
        from megatron_nft.config import RecipeError, load_config
        from megatron_nft.families.hf_config import ModelFolderError
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
    if config.actor.gradient_accumulation_fusion:
        yield from check_fusion(machine)
    folder = Path(config.model.path)
    yield from check_model(folder)
    if config.model.reference is not None and (wrong := _wrong_weights(Path(config.model.reference))):
        yield fail("reference", config.model.reference, wrong, OTHER_MODEL)
    for name in dict.fromkeys([*config.data.train, *config.data.held_out]):
        yield from check_data(machine, name)
    yield from check_own_graders([mode for mode in config.verdict.modes.values() if ":" in mode], recipe, overrides)
    yield from check_run_folder(machine, config.run_dir, _size(folder))


def check_model(folder: Path) -> Iterator[Finding]:
    """Every file that the index names, and a tokenizer."""
    index = folder / "model.safetensors.index.json"
    remedy = "download the model again, and compare the sizes with the hub's"
    try:
        named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    except (ValueError, KeyError, OSError) as error:
        yield fail("model", str(index), f"it can't be read: {error}", remedy)
        return
    broken = [n for n in sorted(named) if not os.access(folder / n, os.R_OK) or (folder / n).stat().st_size == 0]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        yield fail(
            "model", f"{folder}: {len(broken)} of {len(named)} files", f"missing, empty or unreadable: {shown}", remedy
        )
    elif not any((folder / name).is_file() for name in TOKENIZER):
        yield fail("model", str(folder), f"no tokenizer ({' or '.join(TOKENIZER)})", remedy)
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


def check_data(machine: Machine, name: str) -> Iterator[Finding]:
    """A local file, or a name on the hub."""
    file = Path(name)
    if file.exists():
        if os.access(file, os.R_OK):
            yield ok("data", name)
        else:
            yield fail("data", name, "this user may not read it", f"chmod +r {name}, or ask its owner")
    elif file.suffix or name.count("/") + 1 != HUB_NAME_PARTS:
        yield fail("data", name, "no such file", "give the path of a parquet or jsonl file, or owner/name on the hub")
    elif machine.environment.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false"):
        yield fail("data", name, "it is a name on the hub, and HF_HUB_OFFLINE is set", "download it, and give the file")
    else:
        reason = "a name on the hub: it is downloaded at the start, by every machine"
        yield warn("data", name, reason, "download it once, and give the file")


def check_own_graders(names: Sequence[str], recipe: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """By the verdict's own check, in a process of its own: to import a module is to run it."""
    if not names:
        return
    command = [sys.executable, "-m", "megatron_nft.verdict.check", recipe, *overrides]
    value = ", ".join(dict.fromkeys(names))
    try:
        checked = subprocess.run(command, capture_output=True, text=True, timeout=GRADERS_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"not checked within {GRADERS_TIMEOUT_S} s"
        yield fail("graders", value, reason, "have the modules do less when they are imported")
        return
    if checked.returncode:
        yield fail("graders", value, checked.stderr.strip(), "mend verdict.modes, or what it names")
    else:
        yield ok("graders", value)


def check_run_folder(machine: Machine, folder: Path, model_bytes: int) -> Iterator[Finding]:
    """It can be written to, and has room for an exported model. Nothing stays behind."""
    place = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    remedy = "set run.dir to a folder that can be written"
    if not place.is_dir():
        yield fail("run folder", str(folder), f"{place} is a file", remedy)
        return
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield fail("run folder", str(folder), f"{place} can't be written: {error.strerror}", remedy)
        return
    free = machine.disk_usage(place)[2]
    value = f"{folder}: {free / GIB:.1f} GiB free"
    if free < model_bytes:
        reason = f"the trained model takes {model_bytes / GIB:.1f} GiB"
        yield fail("run folder", value, reason, "make room, or set run.dir to another disk")
    else:
        yield ok("run folder", value)


def _size(folder: Path) -> int:
    """Bytes of the model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
