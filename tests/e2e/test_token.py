"""A local run's Ray: whoever reaches its ports, and lacks the token, is sent away."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e
RUN = """
import os, subprocess, sys
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.config import load_config
import ray

client = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]); print('let in')"
with ray_cluster(load_config("launch/recipes/quickstart.toml")):
    address = ray.get_runtime_context().gcs_address
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    for own in ({}, {**token, "RAY_AUTH_TOKEN": "0" * 64}, token):
        done = subprocess.run([sys.executable, "-c", client, address], env=others | own, capture_output=True, text=True)
        print("let in" if "let in" in done.stdout else "AuthenticationError" in done.stderr or done.stderr)
"""


def test_only_who_has_the_token_is_let_in(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"], env=environment | {"PYTHONPATH": os.getcwd(), "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["True", "True", "let in"], done.stdout
    assert not (tmp_path / ".ray").exists(), "it lies in no file"
