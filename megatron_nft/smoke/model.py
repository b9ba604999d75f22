"""The model that is checked where none is given: the quickstart's, or, for layouts that its 4 heads and 4 layers don't
fit, one of random weights that any tp and pp fit. Loads no torch until it makes one.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from megatron_nft.families.hf_config import read_hf_config

QUICKSTART = Path("tests/assets/quickstart/model")
HEAD_DIM = 32
WAIT_S = 120.0


def fits_quickstart(tp: int, stages: int) -> bool:
    """Whether the quickstart's model can be cut so."""
    hf = read_hf_config(QUICKSTART)
    return not (hf.num_attention_heads % tp or hf.num_key_value_heads % tp or hf.num_hidden_layers % stages)


def default_model(tp: int, stages: int, *, rank: int) -> Path:
    """A folder with a model for so many tensor-parallel ranks and (virtual) pipeline stages; the same on all ranks.

    Rank 0 makes it if need be, the others wait; it stays for the next time.
    """
    if fits_quickstart(tp, stages):
        return QUICKSTART
    folder = Path(tempfile.gettempdir()) / f"nft_smoke_model_{os.getuid()}_tp{tp}_stages{stages}"
    if rank == 0 and not (folder / "config.json").is_file():
        _make(folder, tp, stages)
    deadline = time.monotonic() + WAIT_S
    while not (folder / "config.json").is_file():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 has made no model in {folder} within {WAIT_S:.0f} s")
        time.sleep(0.1)
    return folder


def _make(folder: Path, tp: int, stages: int) -> None:
    """Random weights, and the quickstart's tokenizer. It has its name once it is whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    heads = tp * -(-4 // tp)
    shape = json.loads((QUICKSTART / "config.json").read_text()) | {
        "hidden_size": heads * HEAD_DIM,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * heads * HEAD_DIM,
        "num_hidden_layers": stages * -(-4 // stages),
    }
    shape.pop("layer_types", None)
    shape.pop("head_dim", None)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float32)
    made.save_pretrained(partial)
    for file in QUICKSTART.iterdir():
        if not (partial / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, partial)
    (partial / "config.json").write_text(json.dumps(shape))
    shutil.rmtree(folder, ignore_errors=True)  # without config.json: somebody's half
    partial.rename(folder)
