"""What a run is, for people: method, model, data, seed, commit, command, host, date; and how it stands.

A recipe and this process come in, labelled texts go out; the run folder keeps them as run.json, from which `report`
makes pages of runs that others have started. Called by `observe.report` and `observe.html`.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from megatron_nft.config import Config
from megatron_nft.observe.whole_file import replace_text

FILE = "run.json"
COMMIT_S = 5.0
METHODS = {"nft": "NFT", "rft": "RFT", "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "dapo": "DAPO"}
SHOWN = 4
"""Data files that are named."""


def facts_of(config: Config) -> dict[str, str]:
    """Label -> text, in their order, of a run that this process makes."""
    return {
        "Method": method_of(config),
        "Model": Path(config.model.path).name,
        "Data": _files(config.data.train)
        + (f"; held out {_files(config.data.held_out)}" if config.data.held_out else ""),
        "Learning rate": f"{config.optimizer.learning_rate:g}",
        "Seed": str(config.run.seed),
        "Layout": _layout(config),
        "Command": command(),
        "Commit": commit(),
        "Host": socket.gethostname(),
        "Begun": f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}",
    }


def method_of(config: Config) -> str:
    """As people write it, with what is not the method's own."""
    name, weight = config.algorithm.name, config.algorithm.neg_weight
    words = METHODS.get(name, name)
    return f"{words}, neg_weight {weight:g}" if name == "nft" and weight != 1 else words


def command() -> str:
    """That this process was started by, without the folders of its programs."""
    words = list(sys.orig_argv)
    if words and os.path.basename(words[0]).startswith("python"):
        words[0] = "python"
    return shlex.join(words) if len(words) < 60 else shlex.join(words[:60]) + " ..."


@cache
def commit() -> str:
    """Of the program's own tree; "+" behind it: changed since. Empty where it is no git tree."""
    place = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "-C", str(place), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            capture_output=True, text=True, timeout=COMMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write_state(
    folder: Path, facts: Mapping[str, str], verdict: str, minutes: float, timeline: Mapping[str, Any] | None
) -> None:
    """How the run stands, for `read_state`."""
    state = {"facts": dict(facts), "verdict": verdict, "minutes": minutes, "timeline": timeline}
    replace_text(folder / FILE, json.dumps(state))


def read_state(folder: Path) -> dict[str, Any]:
    """What was written last; of a run of an older version, nothing is known."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"facts": {}, "verdict": "", "minutes": 0.0, "timeline": None}


def written_s(folder: Path) -> float:
    """Seconds since `write_state`; 0 if nobody knows."""
    try:
        return max(time.time() - (folder / FILE).stat().st_mtime, 0.0)
    except OSError:
        return 0.0


def _data(config: Config) -> str:
    held_out = f"; held out: {_files(config.data.held_out)}" if config.data.held_out else ""
    return _files(config.data.train) + held_out


def _files(names: list[str]) -> str:
    shown = ", ".join(Path(name).name for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _layout(config: Config) -> str:
    actor, rollout = config.actor, config.rollout
    engines = f"{rollout.engines} engine{'s' if rollout.engines > 1 else ''} x tp {rollout.tp}"
    return f"actor {actor.layout}, {actor.precision}; {engines}, {rollout.dtype}; {config.cluster.device}"
