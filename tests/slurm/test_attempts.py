"""How often a job tries, and what it refuses to begin: the functions of slurm/*.sh, without Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": "."}
PATH = {"PATH": "/usr/bin:/bin"}


def bash(script, **environment):
    """After common.sh. `scontrol` and `squeue` say what they are asked."""
    start = 'source slurm/common.sh\nscontrol() { echo "scontrol $*"; }\n'
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", start + script],
        env={**PATH, **IN_A_JOB, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def job(tmp_path):
    """A job's logs, and a run whose newest checkpoint is of a step."""
    run = tmp_path / "run"

    def attempt(step, *, after=None, **environment):
        """An attempt that begins at one checkpoint, and asks for the next one after another."""
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run_folder").write_text(f"{run}\n")
        for name in [f"step_{step}", "step_90.partial", "step_91.damaged"] if step else []:
            (run / "checkpoints" / name).mkdir(exist_ok=True)
        end = f"mkdir {run}/checkpoints/step_{after};" if after else ""
        script = f"NFT_LOG={tmp_path} NFT_JOB_LOG={tmp_path}; begin_attempt || end_job $?; {end} end_job 75"
        return bash(script, **environment)

    return attempt


def is_requeued(done):
    return "scontrol requeue 7" in done.stdout


def test_three_attempts_in_vain_are_enough(job):
    assert is_requeued(job(0)) and is_requeued(job(0))
    last = job(0)
    assert not is_requeued(last) and last.returncode == 75
    assert "3 attempts in a row have brought no checkpoint after step 0 (NFT_MAX_ATTEMPTS=3)" in last.stdout
    after = job(0)  # Slurm's own requeue, after a lost node
    assert after.returncode == 1 and "not trying again" in after.stdout and not is_requeued(after)


def test_a_further_checkpoint_ends_the_row(job):
    assert is_requeued(job(0)) and is_requeued(job(0)) and is_requeued(job(0, after=4)), "the third got somewhere"
    assert is_requeued(job(4)) and is_requeued(job(4)) and not is_requeued(job(4))


def test_the_site_says_how_many(job):
    assert is_requeued(job(0, after=2, NFT_MAX_ATTEMPTS="1"))
    assert not is_requeued(job(2, NFT_MAX_ATTEMPTS="1"))


@pytest.mark.parametrize("status", [1, 75, 138])
def test_never_from_preflight(tmp_path, status):
    done = bash(f"NFT_LOG={tmp_path} NFT_JOB_LOG={tmp_path} phase=preflight warned=1; end_job {status}")
    assert not is_requeued(done) and done.returncode == status


def test_a_warning_during_preflight_reaches_no_program_and_no_training_begins(tmp_path):
    script = f"""NFT_LOG={tmp_path} NFT_JOB_LOG={tmp_path} phase=preflight nodes=(n1)
        on_nodes() {{ exec bash -c 'echo $$ >"$NFT_PID_FILE"; sleep 1.5; echo preflight ends'; }}
        for at in 0.5 1; do (sleep $at; kill -s USR1 $$) & done
        run_on_head preflight python; echo "its status is $?"; begin_attempt || end_job $?"""
    done = bash(script)
    assert done.returncode == 1 and "preflight ends\n" in done.stdout and "its status is 0\n" in done.stdout, done
    assert "no training will begin in this attempt" in done.stdout
    assert "the warning of the time limit came before training could begin: give more --time" in done.stdout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", "30"), ("0:30", "30"), ("10:00", "600"), ("1:08:09", "4089"), ("2-00:00:00", "172800"), ("UNLIMITED", "")],
)
def test_a_time_limit_as_squeue_prints_it(text, seconds):
    assert bash(f"seconds_of {text}").stdout.strip() == seconds


@pytest.mark.parametrize(
    ("limit", "environment", "refused"),
    [
        ("10:00", {}, True),
        ("10:01", {}, False),
        ("UNLIMITED", {}, False),
        ("10:00", {"SBATCH_SIGNAL": "B:USR1@60"}, False),
        ("1:00", {"SBATCH_SIGNAL": "B:USR1"}, True),  # Slurm's default is 60 s
        ("10:00", {"NFT_PREFLIGHT_ONLY": "1"}, False),
    ],
)
def test_the_time_limit_is_longer_than_what_the_warning_leaves(tmp_path, limit, environment, refused):
    job = tmp_path / "slurm_script"
    job.write_text(
        f"set -euo pipefail; source slurm/common.sh; squeue() {{ echo {limit}; }}; check_warning; exit\n"
        + Path("slurm/nft_32b.sbatch").read_text()
    )
    done = subprocess.run(["bash", job], env={**PATH, **IN_A_JOB, **environment}, capture_output=True, text=True)
    assert done.returncode == (2 if refused else 0), done.stderr
    assert ("--time is" in done.stderr and "training would be told to stop" in done.stderr) == refused


def site(tmp_path, *lines):
    file = tmp_path / "site.env"
    here = ["NFT_HOME=$PWD", f"NFT_RUNS={tmp_path}/runs", "NFT_LOCAL_DIR=/tmp", "NFT_CONTAINER=image.sqsh"]
    file.write_text("\n".join([*here, *lines]) + "\n")
    return {"NFT_SITE": str(file)}


def test_a_job_array_needs_a_name_for_each_task(tmp_path):
    script = "load_site; check_warning() { exit 9; }; start_ray() { exit 8; }; train recipe.toml"
    array = {"SLURM_ARRAY_TASK_ID": "3", **site(tmp_path)}
    alike = ["run.seed=%a", "run.name=same run.seed=%a", "run.seed=%a run.name=same", "run.name=a_%a run.name=same",
             "run.names=%a", "'model.path=x run.name=%a'"]  # fmt: skip
    for settings in alike:
        done = bash(f"{script} {settings}", **array)
        assert done.returncode == 2 and "name each one's: run.name=mine_%a" in done.stderr, settings
    for settings in ("run.name=same run.name=%a", "'run.name = a %a'", "run.seed=1 run.name=%a_b actor.tp=2"):
        assert bash(f"{script} {settings}", **array).returncode == 9, settings
    shown = 'check_warning() { printf "%s\\n" "${settings[@]}"; exit 9; }; train recipe.toml run.name=a_%a run.seed=%a'
    done = bash(f"load_site; {shown}", **array)
    assert done.returncode == 9 and done.stdout.splitlines()[-2:] == ["run.name=a_3", "run.seed=3"]


def test_a_driver_that_is_started_again_does_not_begin_the_run_anew(tmp_path):
    """Neither in the same job, where somebody has killed it, nor in the next attempt."""
    script = f"""NFT_LOG={tmp_path} NFT_JOB_LOG={tmp_path}
        run_on_head() {{
            echo "driver: ${{*: -2}}"
            if [[ ! -e {tmp_path}/killed ]]; then touch {tmp_path}/killed && return 137; fi
        }}
        drive recipe.toml run.overwrite=true"""
    lines = [line for line in bash(script).stdout.splitlines() if line.startswith("driver")]
    assert lines == ["driver: recipe.toml run.overwrite=true", "driver: run.overwrite=true run.overwrite=false"]
    lines = bash(script).stdout.splitlines()
    assert lines == ["driver: run.overwrite=true run.overwrite=false"]


def test_all_of_the_site_file_reaches_the_programs(tmp_path):
    cache = tmp_path / "cache"
    lines = ["NFT_OBJECT_STORE_BYTES=123", "NCCL_IB_HCA=mlx5", "NFT_UMASK=077", f"NFT_CACHE_DIR={cache}"]
    script = "load_site; unset NFT_CONTAINER; NFT_VENV=/none slurm/node.sh bash -c 'umask; env'"
    done = bash(script, **site(tmp_path, *lines, "NFT_VENV=/none"))
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.splitlines())
    assert {*lines[:2], "0077", f"TRITON_CACHE_DIR={cache}/triton", f"VLLM_CACHE_ROOT={cache}/vllm"} <= found
    assert "NFT_CONTAINER=image.sqsh" in bash("load_site; slurm/node.sh env", **site(tmp_path)).stdout
    assert os.stat(tmp_path / "runs/slurm/7").st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            f"NFT_LOCAL_DIR=/scratch/{'long' * 8}",
            "is 6 characters too long: Ray's sockets would lie at /scratch/longlong",
        ),
        ("NFT_UMASK=rwx", "NFT_UMASK=rwx in"),
    ],
)
def test_values_that_would_break_later(tmp_path, line, words):
    done = bash("load_site", **site(tmp_path, line))
    assert done.returncode == 2 and words in done.stderr


def test_a_short_enough_folder_for_sockets(tmp_path):
    for length, status in ((35, 0), (36, 2)):
        done = bash("load_site", **site(tmp_path, f"NFT_LOCAL_DIR=/{'x' * (length - 1)}"))
        assert done.returncode == status, done.stderr


def test_a_container_without_pyxis_and_modules_without_module(tmp_path):
    start = "load_site; srun() { echo help; }; on_nodes() { exit 1; }; start_ray"
    done = bash(start, **site(tmp_path))
    assert "NFT_CONTAINER needs pyxis, and srun has no --container-image here: set NFT_VENV instead" in done.stderr
    done = bash("load_site; slurm/node.sh true", **site(tmp_path, "NFT_MODULES=cuda/13"))
    assert done.returncode == 2 and "has no `module`; leave it empty" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
def test_a_cache_of_another_users_is_not_taken(tmp_path):
    """Compilers' caches are code, and whoever may write to /tmp may make the folder first."""
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, 65534, 65534)
    done = bash("load_site; slurm/node.sh true", **site(tmp_path, f"NFT_CACHE_DIR={cache}"))
    assert done.returncode == 2 and "is no folder of this user's on" in done.stderr


def test_the_token_is_its_owners_alone(tmp_path):
    script = """load_site; on_nodes() { echo 10.0.0.1; sleep 1; }; start_ray; trap - EXIT
        stat -c %a "$RAY_AUTH_TOKEN_PATH"; cat "$RAY_AUTH_TOKEN_PATH"; stop_ray; ls "$NFT_LOG" """
    done = bash(script, **site(tmp_path, "NFT_UMASK=002"))
    lines = done.stdout.splitlines()
    mode, token = lines[lines.index("600") :][:2]
    assert mode == "600" and len(token) >= 64
    assert "ray_token" not in lines, "it ends with the job's Ray"
