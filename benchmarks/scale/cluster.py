"""What a simulated cluster needs of the machine: a recipe of the wanted size with the files that it names, and a Ray.

The model is a folder as the real one's, its weights files without bytes (holes, as large as the real ones); prompts are
made. The Ray has as many GPUs and CPUs as it is told, and one node.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from unittest import mock

from benchmarks.planner.rows import COMMON, MODELS
from megatron_nft.config import Config, load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters

RECIPE = Path("launch/recipes/nft_qwen2.5_32b_16x8h100.toml")
MODEL, TOKENIZER = "Qwen2.5-32B", Path("tests/assets/quickstart/model")
NUM_PROMPTS = 17_398
"""DAPO-Math-17k's."""
HELD_OUT = {"aime24": 30, "math500": 500, "aime25": 30, "amc23": 40, "olympiad": 674, "minerva": 272}
"""The recipe's benchmarks, and how many problems they have."""
QUESTION = (
    "Let $a_{{1}}, a_{{2}}, \\ldots$ be integers with $a_{{1}} = {a}$ and $a_{{n+1}} = a_{{n}} + {b}$ for all $n$. "
    "Find $a_{{2}} - a_{{1}} + {c}$, given that {story}."
)
OBJECT_STORE_BYTES = 4 << 30
"""As slurm/ gives a node's."""


def scaled_recipe(folder: Path, gpus: int, overrides: Sequence[str] = (), num_prompts: int = NUM_PROMPTS) -> Config:
    """The 32B recipe on so many GPUs: more replicas and engines of the same layout; the files that it names are made.
    The batch is the recipe's, of fewer GPUs than its own their share.

    Args:
        gpus: a multiple of 16, the ranks of a replica.
        overrides: further ones.
    """
    model, prompts = folder / MODEL, folder / "prompts.jsonl"
    if not model.exists():
        make_model(model)
        make_prompts(prompts, num_prompts)
        for name, count in HELD_OUT.items():
            make_prompts(folder / f"{name}.jsonl", count)
    held_out = [str(folder / f"{name}.jsonl") for name in HELD_OUT]
    given = [
        f'model.path="{model}"',
        f'data.train=["{prompts}"]',
        f"data.held_out={json.dumps(held_out)}",
        f'run.dir="{folder / "runs"}"',
        f"run.name=gpus_{gpus}",
        'run.overwrite="all"',
        f"actor.dp={gpus // 16}",
        f"rollout.engines={gpus // 4}",
        f"train.groups_per_step={min(512, 4 * gpus)}",
        "verdict.workers=2",
        'verdict.modes={simulated = "strict_boxed"}',
    ]
    return load_config(RECIPE, [*given, *overrides])


def make_model(folder: Path) -> None:
    """config.json, a tokenizer, and safetensors files of which only the header is there."""
    shutil.copytree(TOKENIZER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "config.json").write_text(
        json.dumps(COMMON | {"rope_theta": 1e6, "architectures": ["Qwen2ForCausalLM"]} | MODELS[MODEL])
    )
    header, end = {}, 0
    for parameter in parameters(read_hf_config(folder)):
        for name, shape in parameter.hf_shapes.items():
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + 2 * prod(shape)]}
            end += 2 * prod(shape)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def make_prompts(path: Path, count: int) -> None:
    """Questions of about 200 tokens."""
    draw = random.Random(path.name)
    with path.open("w") as file:
        for _ in range(count):
            a, b, c = (draw.randrange(1, 1000) for _ in range(3))
            story = ", and ".join(f"{draw.randrange(9999)} is no term of it" for _ in range(draw.randrange(1, 10)))
            row = {"question": QUESTION.format(a=a, b=b, c=c, story=story), "answer": str(b + c)}
            file.write(json.dumps(row | {"data_source": "simulated"}) + "\n")


@contextmanager
def ray_with(gpus: int, cpus: int) -> Iterator[None]:
    """A Ray that believes to have so many, at RAY_ADDRESS: the run joins it, as in a job."""
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with mock.patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
            yield
    finally:
        cluster.shutdown()
