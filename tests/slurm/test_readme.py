"""A fresh user's path: every command of slurm/README.md as it is printed, one after the other, and what it promises.

A copy of the repository is the clone, tests/hub.py the hub (with the quickstart's model and problems under the names
that the page has), the emulated Slurm the cluster: 16 nodes with one core each, on which ranks and engines run on CPUs.
What a command gets beside its words is here: in site.env (a recipe that such nodes can train), or in ADDED.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_nft.config import load_config, to_toml
from tests.hub import Hub
from tests.slurm.jobs import NEEDS_SLURM, SMALL, wait_for
from tests.unit.plan.conftest import QWEN2, SHAPES

PAGE = Path("slurm/README.md")
pytestmark = NEEDS_SLURM
night = pytest.mark.night("a user's whole path: 16 nodes, twice")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:sbatch |srun |launch/|python|ls |source |cp |git |pip |\./).*")
INSTALLS = ("git clone", "python3", "pip install", "launch/install")
"""What makes an environment: the tests' own is taken."""
ADDED = {
    "slurm/evaluate.sbatch": "--engines 1 --max-prompts 4",
}
"""A CPU is no node of GPUs. The command's own words come first, and are overridden."""
ONLY_ACCEPTED = ("run.name=half", "NFT_RECIPE=", "NFT_DRIVER=", "--nodes=8", "--array=")
"""Variants of the job that has been run: Slurm takes them, and their recipe takes their settings."""


def commands() -> list[str]:
    """Of the page's blocks, in their order, less comments and ends of lines that go on."""
    blocks = re.findall(r"(?ms)^```\n(.*?)^```", PAGE.read_text())
    lines = [re.sub(r"\s{2,}#.*", "", line) for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line.strip() for line in lines if COMMAND.fullmatch(line) and not line.startswith("smoke:")]


def promised(*lines: str) -> list[re.Pattern]:
    """Lines of the page as patterns: any number for a number but 0, anything for three dots, any format of numbers."""
    for line in lines:
        assert line in PAGE.read_text(), f"{PAGE} no longer promises {line!r}"
    parts = [re.split(r"(\.\.\.|bf16|bfloat16|[\d.,]+)", line) for line in lines]
    fixed = {"...": ".*", "bf16": r"\w+", "bfloat16": r"\w+", "0": "0"}
    return [
        re.compile("".join(fixed.get(p) or (r"[-+\d.,e%]+" if p[:1].isdigit() else re.escape(p)) for p in each))
        for each in parts
    ]


class User:
    """Somebody at the login node's shell, in the clone."""

    def __init__(self, slurm, clone: Path, hub: Hub) -> None:
        self.slurm, self.clone = slurm, clone
        self.environment = {
            **slurm.environment, "HF_ENDPOINT": hub.address, "HF_HOME": f"{clone}/home",
        }  # fmt: skip

    def types(self, command: str) -> str:
        """Its output; of a job, once that has ended, its file in this folder."""
        script = f"source .venv/bin/activate && source slurm/site.env; {command}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.clone, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if not (job := re.match(r"Submitted batch job (\d+)\n", done.stdout)):
            return done.stdout
        name = "nft_32b" if "nft_32b" in command else re.search(r"slurm/(\w+)\.sbatch", command)[1]
        output = self.clone / f"{'' if name.startswith('nft') else 'nft_'}{name}_{job[1]}.out"
        state = wait_for(self.slurm, job[1], output, 600)
        assert state == "COMPLETED", f"{command}\n{output.read_text()}"
        return output.read_text()


@pytest.fixture(scope="module")
def user(slurm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("u")
    clone = folder / "megatron_nft"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    for name in filter(os.path.isfile, listed.stdout.splitlines()):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, clone / name)
    (clone / ".venv").symlink_to(sys.prefix)
    data = folder / "data"
    data.mkdir()
    for line in re.findall(r'\$nft (\S+)"', Path("launch/download_data.sh").read_text()):
        kind = "train" if line.startswith("dapo") else "held_out"
        shutil.copy(f"tests/assets/quickstart/{kind}.parquet", data / line)
    repositories = {
        "Qwen/Qwen2.5-32B": Path("tests/assets/quickstart/model"), "datasets/ChenDRAG/VeRL_math_validation": data,
    }  # fmt: skip
    with Hub(repositories) as hub:
        yield User(slurm, clone, hub)


def fill_in(user: User) -> None:
    """site.env: the example with what this cluster has in place of its values; and a recipe for it."""
    file, runs = user.clone / "slurm/site.env", user.clone.parent / "runs"
    values = {
        "export SBATCH_PARTITION": "main", "NFT_CPU_PARTITION": "main", "NFT_HOME": user.clone, "NFT_RUNS": runs,
        "NFT_UMASK": "077",
        "NFT_LOCAL_DIR": user.slurm.scratch, "NFT_CACHE_DIR": user.clone.parent / "cache",
        "NFT_GB_S_WITHIN": 0, "NFT_GB_S_BETWEEN": 0,
    }  # fmt: skip
    text = file.read_text()
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", text)
        assert count == 1, f"{name} has no line in site.env.example"
    file.write_text(
        f"{text}\nNFT_CPUS_PER_NODE=1\nNFT_GPUS_PER_NODE=0\nNFT_OBJECT_STORE_BYTES=80000000\nNFT_RAY_AT_ONCE=4\n"
        f"NFT_RANKS=4\nNFT_RECIPE=${{NFT_RECIPE:-small.toml}}\n"
    )
    settings = [*SMALL, "run.name=nft_qwen2.5_32b", "train.steps=2", "checkpoint.every=1", "run.overwrite=false",
                "evaluate.samples=2"]  # fmt: skip
    recipe = to_toml(load_config("launch/recipes/quickstart.toml", settings))
    for old, new in (("model", "models/Qwen2.5-32B"), ("train.parquet", "data/dapo-math-17k.parquet"),
                     ("held_out.parquet", "data/aime24.parquet")):  # fmt: skip
        recipe = recipe.replace(f'"tests/assets/quickstart/{old}"', f'"{new}"')
    (user.clone / "small.toml").write_text(recipe)


def is_accepted(user: User, command: str) -> None:
    """By Slurm, and by the shipped recipe, for the published model."""
    said = user.types(command.replace("sbatch ", "sbatch --test-only ", 1) + " 2>&1")
    assert "to start at" in said
    words = shlex.split(command)
    recipe = next((word[len("NFT_RECIPE=") :] for word in words if word.startswith("NFT_RECIPE=")), None)
    settings = [w.replace("%a", "3") for w in words[words.index("slurm/nft_32b.sbatch") + 1 :]]
    load_config(
        recipe or "launch/recipes/nft_qwen2.5_32b_16x8h100.toml",
        [f"model.path={user.clone.parent}/published", *settings], checks_weights=False,
    )  # fmt: skip


PROMISES = {
    "sbatch slurm/smoke.sbatch": promised("smoke: 8 passed, 0 failed"),
    "launch/download_model.sh": promised("model: models/Qwen2.5-32B, ..."),
    "python -m megatron_nft.plan": [re.compile("fits")],
    "NFT_PREFLIGHT_ONLY=1": promised("preflight: ... 0 FAIL in ... s"),
    "sbatch slurm/nft_32b.sbatch": promised(
        "data: ... training prompts (...), ... held out",
        "actor: 128 Megatron ranks (tp 8 x pp 2 x dp 8), bf16 | 32 vLLM engines, bfloat16 | starting ...",
        "ready after ... s",
        "evaluation at step 0 | average ... | avg@k ... | truncated ... | ... prompts | ...s",
        "... step 1/320 ... | acc ... | right ... | length ... | cut ... | gap ... | tok/s ... | time ... | ETA ... |",
    ),
}


def test_the_commands_are_found():
    """Or else the path below would be shorter than the page's."""
    found = commands()
    for start in [
        *PROMISES,
        "cp slurm/site.env.example",
        "source .venv",
        "ls models",
        "sbatch slurm/evaluate",
        "srun ",
    ]:
        assert any(command.startswith(start) for command in found), start
    assert any("convert.sbatch" in command for command in found) and len(found) >= 15
    assert len([c for c in found if any(word in c for word in ONLY_ACCEPTED)]) == len(ONLY_ACCEPTED)


@night
def test_every_command_does_what_the_page_says(user):
    published = user.clone.parent / "published"
    published.mkdir()
    (published / "config.json").write_text(json.dumps(QWEN2 | SHAPES["32b"]))
    done = []
    for command in commands():
        if command.startswith(INSTALLS):
            continue
        if command.startswith("cp "):
            subprocess.run(["bash", "-c", command], cwd=user.clone, check=True)
            fill_in(user)
            continue
        if any(word in command for word in ONLY_ACCEPTED):
            is_accepted(user, command)
            continue
        if "megatron_nft.plan" in command:  # reads config.json only, and is of the published model
            command += f" --model {published}"
        added = next((more for script, more in ADDED.items() if script in command), "")
        said = user.types(f"{command} {added}".strip())
        for pattern in next((found for start, found in PROMISES.items() if command.startswith(start)), []):
            assert pattern.search(said), f"{command} was to print {pattern.pattern}\n{said}"
        if "sbatch" in command:
            assert said.rstrip().endswith(" done"), said
        done.append(command)
    assert len(done) >= 9
    run = user.clone.parent / "runs/nft_qwen2.5_32b"
    for name in ("report.html", "metrics.jsonl", "checkpoints/step_2", "hf/config.json", "evaluation/table.txt"):
        assert (run / name).exists(), name
    assert run.stat().st_mode & 0o777 == 0o700
    assert (user.clone / "models/Qwen2.5-32B-megatron").is_dir()
