"""Scripts that need one node, each to its end; and jobs that must fail, with a message that says which, where, and what
to do. All are submitted at once: they wait for one another, not for the test."""

import time

import pytest

from tests.slurm.jobs import NEEDS_SLURM, TRAIN, Submit, assert_nothing_is_left, wait_for

pytestmark = [*NEEDS_SLURM, pytest.mark.night("the other job scripts, and what a job says to bad input")]
MODEL, RECIPE = "tests/assets/quickstart/model", "launch/recipes/quickstart.toml"


@pytest.fixture(scope="module")
def ended(slurm, tmp_path_factory):
    """Name of a job -> state, output; and the folder of all."""
    folder = tmp_path_factory.mktemp("several")
    submit, jobs, last = Submit(slurm, folder), {}, {}

    def start(name, script, *arguments, queue=None, sbatch=(), **more):
        """Jobs of a queue run one after the other: too many of Ray's programs on two cores would be too slow for it."""
        after = [f"--dependency=afterany:{last[queue]}"] if queue in last else []
        jobs[name] = submit(script, *arguments, sbatch=[*sbatch, *after], **more)
        last[queue or name] = jobs[name][0]

    slurm.run("ip", "-n", slurm.netns("n4"), "link", "property", "add", "dev", "eth0", "altname", "ib0")
    (folder / "read_only").mkdir()
    for node in ("n6", "n9"):
        slurm.on_node(node, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder / "read_only"))
    try:
        start("convert", "slurm/convert.sbatch", "to_megatron", MODEL, f"{folder}/megatron", queue="one node")
        start("smoke", "slurm/smoke.sbatch", queue="one node", NFT_RANKS="1")
        start(
            "evaluate", "slurm/evaluate.sbatch", RECIPE, "evaluate.max_prompts=8", "evaluate.samples=1",
            "rollout.engines=1", f"--out={folder}/evaluation", queue="one node",
        )  # fmt: skip
        start("cancelled", TRAIN, queue="Ray", sbatch=["--nodes=2"])
        start("too many ranks", TRAIN, "actor.dp=4", queue="Ray", sbatch=["--nodes=2"])
        start("interface", TRAIN, queue="Ray", sbatch=["--nodelist=n4,n5", "--nodes=2"], site=["NFT_INTERFACE=ib0"])
        start(
            "read-only worker", TRAIN, queue="Ray", sbatch=["--nodelist=n8,n9", "--nodes=2"],
            site=[f"NFT_RUNS={folder}/read_only"],
        )  # fmt: skip
        start("no interface", TRAIN, sbatch=["--nodelist=n7", "--nodes=1"], site=["NFT_INTERFACE=ib7"])
        start("read-only", TRAIN, sbatch=["--nodelist=n6", "--nodes=1"], site=[f"NFT_RUNS={folder}/read_only/runs"])
        start("unset", TRAIN, sbatch=["--nodes=1"], site=["NFT_RUNS="])
        job, _ = jobs["cancelled"]
        deadline = time.monotonic() + 120
        while not (folder / f"runs/slurm/{job}/attempt_0/joined.1").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        slurm.run("scancel", job)
        yield {name: (wait_for(slurm, *job, 240), job[1].read_text()) for name, job in jobs.items()}, folder
    finally:
        for node in ("n6", "n9"):
            slurm.on_node(node, "umount", str(folder / "read_only"))
        slurm.run("ip", "-n", slurm.netns("n4"), "link", "property", "del", "dev", "eth0", "altname", "ib0")


def output_of(ended, name, state):
    found, text = ended[0][name]
    assert found == state, text
    return text


def test_convert(ended):
    assert output_of(ended, "convert", "COMPLETED").rstrip().endswith(" done")
    assert list((ended[1] / "megatron").glob("*.distcp"))


def test_smoke(ended):
    assert " passed, 0 failed" in output_of(ended, "smoke", "COMPLETED")


def test_evaluate(ended):
    assert "held_out: 8 prompts, 1 answer each" in output_of(ended, "evaluate", "COMPLETED")
    assert "held_out" in (ended[1] / "evaluation" / "table.txt").read_text()


def test_scancel_with_ray_on_two_nodes(slurm, ended):
    output_of(ended, "cancelled", "CANCELLED")
    folder = ended[1] / "runs" / "slurm"
    assert len(list(folder.glob("*/attempt_0/joined.1"))) >= 2, "Ray was up on both nodes"
    assert_nothing_is_left(slurm)


def test_a_recipe_for_more_than_the_job_has(ended):
    text = output_of(ended, "too many ranks", "FAILED")
    assert "FAIL  room for all   tp 1 x pp 1 x dp 4\n" in text
    assert "the recipe asks for 5 CPU slots (tp 1 x pp 1 x dp 4 = 4 ranks" in text
    assert "submit the job with more nodes, or lower actor.dp" in text


def test_an_interface_that_no_node_has(ended):
    text = output_of(ended, "no interface", "FAILED")
    assert "NFT_INTERFACE=ib7 is no interface with an IPv4 address on n7; there: eth0 (10." in text
    assert "set it in slurm/site.env, or leave it empty" in text


def test_an_interface_that_one_node_lacks(ended):
    text = output_of(ended, "interface", "FAILED")
    assert "FAIL  nodes  n5 has not joined Ray\n" in text
    assert "NFT_INTERFACE=ib0 is no interface with an IPv4 address on n5; there: eth0 (10." in text
    assert "sbatch --exclude=n5" in text


def test_a_run_folder_that_cannot_be_written(ended):
    text = output_of(ended, "read-only", "FAILED")
    assert f"error: can't make {ended[1]}/read_only/runs/slurm/" in text
    assert "to a folder that this user may write to" in text


def test_a_run_folder_that_one_node_cannot_write(ended):
    text = output_of(ended, "read-only worker", "FAILED")
    assert "FAIL  nodes  n9 has not joined Ray\n" in text
    assert f"can't make {ended[1]}/read_only/slurm/" in text
    assert "NFT_RUNS in slurm/site.env must be a folder that all nodes see and may write to" in text


def test_a_site_value_that_is_not_set(ended):
    assert "NFT_RUNS: is not set in" in output_of(ended, "unset", "FAILED")
