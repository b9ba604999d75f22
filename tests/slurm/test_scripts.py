"""The job scripts as files: shellcheck, and what they say to a site file that lacks something. Needs no Slurm."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

SCRIPTS = sorted(
    [*Path("slurm").glob("*.s*"), *Path("launch").glob("*.sh"), *Path("tests").rglob("*.sh"), Path(".ci/run")]
)
SITE = Path("slurm/site.env.example")
IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": "."}


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", "-x", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def load_site(tmp_path, *lines):
    site = tmp_path / "site.env"
    site.write_text("\n".join(lines) + "\n")
    command = ["bash", "-euo", "pipefail", "-c", "source slurm/common.sh; load_site"]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "NFT_SITE": str(site), **IN_A_JOB}, capture_output=True, text=True
    )
    assert done.returncode != 0
    return done.stderr


def test_a_missing_site_value_is_named_with_what_it_is(tmp_path):
    assert "NFT_HOME: is not set in" in load_site(tmp_path)
    assert "NFT_RUNS: is not set in" in load_site(tmp_path, "NFT_HOME=$PWD")
    here = ["NFT_HOME=$PWD", f"NFT_RUNS={tmp_path}", "NFT_LOCAL_DIR=/tmp"]
    assert "NFT_VENV: is not set in" in load_site(tmp_path, *here)
    assert "has no bin/python; make it as slurm/README.md, 1, says" in load_site(tmp_path, *here, "NFT_VENV=/nowhere")


def test_a_folder_that_is_not_the_repository(tmp_path):
    here = [f"NFT_HOME={tmp_path}", f"NFT_RUNS={tmp_path}", "NFT_LOCAL_DIR=/tmp", "NFT_CONTAINER=image.sqsh"]
    assert f"NFT_HOME={tmp_path} in" in load_site(tmp_path, *here)


def test_no_site_file():
    command = ["bash", "-euo", "pipefail", "-c", "source slurm/common.sh; load_site"]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "NFT_SITE": "none", **IN_A_JOB}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "cp slurm/site.env.example slurm/site.env" in done.stderr


@pytest.mark.parametrize(
    ("status", "warned", "ended", "requeued", "exits"),
    [
        (0, "", "", False, 0),
        (75, "", "", True, 0),  # a checkpoint was saved: go on
        (75, "1", "", True, 0),
        (130, "1", "", True, 0),  # warned before anything could be saved
        (0, "1", "", False, 0),
        (1, "", "", False, 1),
        (2, "", "", False, 2),
        (130, "", "1", False, 130),  # somebody wants it ended
    ],
)
def test_a_job_is_requeued_if_its_run_can_go_on(tmp_path, status, warned, ended, requeued, exits):
    script = f"""source slurm/common.sh; NFT_LOG={tmp_path} NFT_JOB_LOG={tmp_path} warned={warned} ended={ended}
        scontrol() {{ echo "scontrol $*"; }}; squeue() {{ echo COMPLETING; }}; end_job {status}"""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": "/usr/bin:/bin", **IN_A_JOB},
        capture_output=True,
        text=True,
    )
    assert done.returncode == exits, done.stderr
    assert ("scontrol requeue 7" in done.stdout) == requeued


@pytest.mark.parametrize(("script", "nodes"), [("nft_32b", 16), ("nft_7b", 4)])
def test_a_job_asks_for_the_gpus_of_its_recipe(script, nodes):
    text = Path(f"slurm/{script}.sbatch").read_text()
    recipe = tomllib.loads(Path(text.split("NFT_RECIPE:-")[1].split("}")[0]).read_text())
    actor = recipe["actor"]
    assert f"--nodes={nodes}\n" in text and "--gpus-per-node=8\n" in text
    assert actor.get("tp", 1) * actor.get("pp", 1) * actor.get("dp", 1) == nodes * 8
