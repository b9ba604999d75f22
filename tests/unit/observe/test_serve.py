"""A page on localhost: as of now at every request, reloading while the run lasts, and for nobody else."""

import io
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request

import pytest

from megatron_nft import report as command
from megatron_nft.observe.report import Report
from megatron_nft.observe.serve import make_server


@pytest.fixture
def served():
    """served(*folders): the address at which they are served."""
    servers = []

    def serve(*folders):
        servers.append(make_server(folders, 0))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def data_at(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_every_request_shows_the_run_as_it_is_and_it_reloads_until_the_run_ends(make_config, make_group, served):
    config = make_config()
    report = Report(config, io.StringIO())
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25})
    address = served(config.run_dir)
    first = data_at(address)["run"]
    with report.step(1):
        report.add_rollouts([make_group("right", "wrong")])
    data = data_at(f"{address}/report.html")
    assert data["run"]["reload_s"] == first["reload_s"] > 0 and data["run"]["facts"] == first["facts"]
    assert data["steps"]["step"] == [1] and len(data["answers"]) == 2 and first["num_steps"] == 0
    report.close("done")
    data = data_at(address)
    assert data["run"]["reload_s"] == 0 and data["run"]["verdict"] == "done" and data["timeline"]["step"] == 1


def test_minutes_and_timeline_are_as_of_now_between_two_pages_of_the_run(make_config, served):
    config = make_config()
    report = Report(config, io.StringIO())
    report.count_earlier(3.0)
    for step in (1, 2):
        with report.step(step), report.stage("train"):
            time.sleep(0.01)
    address, state = served(config.run_dir), config.run_dir / "run.json"
    os.utime(state, (time.time() - 90, time.time() - 90))
    data = data_at(address)
    assert data["run"]["minutes"] == pytest.approx(4.5, abs=0.2), "3 minutes before, and 1.5 since"
    timeline = data["timeline"]
    assert timeline["step"] == 2 and timeline["tracks"][0][0] == "driver"
    assert "train" in [name for name, _, _ in timeline["tracks"][0][1]]
    (config.run_dir / "timeline/step_2.json").write_text("{")
    assert data_at(address)["timeline"] is None
    (config.run_dir / ".owner").mkdir()
    beat = config.run_dir / ".owner" / "1"
    beat.write_text("{}")
    os.utime(state, (time.time() - 660, time.time() - 660))
    os.utime(beat, (time.time() - 600, time.time() - 600))
    run = data_at(address)["run"]
    assert run["verdict"].startswith("interrupted") and run["minutes"] == pytest.approx(4.0, abs=0.2)
    report.close("done")
    os.utime(state, (time.time() - 900, time.time() - 900))
    run = data_at(address)["run"]
    assert run["minutes"] == pytest.approx(3.0, abs=0.2), "it has ended"


def test_a_copy_of_a_run_that_lasted_does_not_last_for_ever(make_config, served):
    """Without the folder that says who lives; its page doesn't reload, and its minutes end with what was written."""
    config = make_config()
    report = Report(config, io.StringIO())
    report.count_earlier(3.0)
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25})
    address, state = served(config.run_dir), config.run_dir / "run.json"
    os.utime(state, (time.time() - 3600, time.time() - 3600))
    run = data_at(address)["run"]
    assert run["verdict"].startswith("interrupted: not heard of for") and run["reload_s"] == 0
    assert run["minutes"] == pytest.approx(3.0, abs=0.2)


def test_a_run_that_was_killed_is_not_running_for_ever(make_config, served):
    config = make_config()
    Report(config, io.StringIO())
    (config.run_dir / ".owner").mkdir()
    beat = config.run_dir / ".owner" / "1"
    beat.write_text("{}")
    address = served(config.run_dir)
    assert data_at(address)["run"]["verdict"] == "running"
    os.utime(beat, (time.time() - 600, time.time() - 600))
    run = data_at(address)["run"]
    assert run["verdict"].startswith("interrupted: not heard of for 10m") and run["reload_s"] == 0


def test_several_runs_are_compared(make_config, served):
    for name in ("one", "two"):
        Report(make_config(name=name), io.StringIO()).close("done")
    data = data_at(served(*(make_config(name=name).run_dir for name in ("one", "two"))))
    assert [run["label"] for run in data["runs"]] == ["one", "two"] and data["reload_s"] == 0


@pytest.mark.parametrize(("path", "host", "status"), [("/", "evil.example", 403), ("/recipe.toml", "localhost", 404)])
def test_nothing_else_is_served_to_nobody_else(make_config, served, path, host, status):
    config = make_config()
    Report(config, io.StringIO()).close("done")
    request = urllib.request.Request(served(config.run_dir) + path, headers={"Host": host})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == status


def test_one_run_without_serve_is_a_file_and_what_is_no_run_is_refused(make_config, tmp_path, capsys):
    config = make_config()
    Report(config, io.StringIO()).close("done")
    assert command.main([str(config.run_dir), "--out", str(tmp_path / "page.html")]) == 0
    assert "Training report" in (tmp_path / "page.html").read_text() and capsys.readouterr().out.startswith("1 run: ")
    assert command.main(["--serve", str(tmp_path)]) == 2 and "no run's folder" in capsys.readouterr().err
