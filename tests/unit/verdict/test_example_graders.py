"""The two examples of graders of one's own, in the real pool: programs in a sandbox, a verifier behind a URL."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import numpy as np
import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt
from megatron_nft.verdict.code_grader import grade as grade_code
from megatron_nft.verdict.judge import Judge

ADD = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
CASES = {"cases": [{"stdin": "1 2", "stdout": "3"}, {"stdin": "-5 5\n", "stdout": "0\n"}]}


def program(*lines):
    return "Here it is:\n```python\n" + "\n".join(lines) + "\n```\nDone."


def prompt(gold, **extra_info):
    token_ids_P = np.zeros(1, np.int32)
    return Prompt(
        prompt_id="t/0", text="?", token_ids_P=token_ids_P, ground_truth=gold, data_source="own", extra_info=extra_info
    )


def test_programs_are_graded_by_what_they_print():
    assert grade_code(ADD, "", CASES) == 1
    assert grade_code(ADD, "", {"cases": json.dumps(CASES["cases"])}) == 1
    assert grade_code(program("print(3)"), "", CASES) == 0.5
    assert grade_code(program("print('a ')", "print('b')"), "a\nb", {}) == 1
    assert grade_code("print(3)", "3", {}) == 0, "no block"
    assert grade_code(program("print(3)", "raise SystemExit(1)"), "3", {}) == 0
    assert grade_code(program("import os", "os._exit(0)"), "3", {}) == 0


@pytest.mark.parametrize(
    "lines",
    [
        ("import socket", "socket.socket()"),
        ("import socket", "socket.create_connection(('127.0.0.1', 22), 1)"),
        ("import asyncio", "asyncio.run(asyncio.sleep(0))"),  # its loop needs a socket pair
        ("import os, signal", "os.kill(os.getppid(), signal.SIGKILL)"),
        (
            "import subprocess, sys",
            "subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'], check=True)",
        ),
        ("x = b'x' * (2 << 30)",),
        ("open('big', 'wb').write(b'x' * (64 << 20))",),
        ("while True: pass",),
    ],
)
def test_programs_have_no_network_and_limits(lines):
    assert grade_code(program(*lines, "print('through')"), "through", {}) == 0


def test_a_program_sees_no_environment_and_not_what_is_expected(monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    look = program("import os, sys", "print(sorted(os.environ), sys.argv[1:], sorted(os.listdir('.')))")
    assert grade_code(look, "['OMP_NUM_THREADS', 'PYTHONHASHSEED'] [] ['answer.py', 'stdout']", {}) in (0, 1)
    assert grade_code(program("import os", "print('SECRET' in os.environ)"), "False", {}) == 1


def test_programs_in_the_pool():
    mode = "megatron_nft.verdict.code_grader:grade"
    with Judge(VerdictConfig(workers=2, deadline_s=10, modes={"own": mode})) as judge:
        judge.warm_up()
        prompts = [prompt("", **CASES)] * 3
        verdicts = judge.judge_answers([ADD, program("print(3)"), "none"], [""] * 3, ["own"] * 3, prompts=prompts)
    assert [(v.kind, v.score) for v in verdicts] == [("right", 1), ("wrong", 0.5), ("wrong", 0)]


class Verifier(BaseHTTPRequestHandler):
    """Right is what equals the ground truth. Fails as it is told, first."""

    failures: ClassVar[list[int]] = []
    batches: ClassVar[list[int]] = []

    def do_POST(self):
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Verifier.failures:
            self.send_error(Verifier.failures.pop(0))
            return
        Verifier.batches.append(len(items))
        body = json.dumps([float(item["answer"] == item["ground_truth"]) for item in items]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def verifier():
    server = HTTPServer(("127.0.0.1", 0), Verifier)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import Judge
mode, answers = "megatron_nft.verdict.http_grader:grade", sys.argv[1]
with Judge(VerdictConfig(workers=1, modes={"own": mode}, batches={mode: 4})) as judge:
    judge.warm_up()
    verdicts = judge.judge_answers([*answers], ["7"] * len(answers), ["own"] * len(answers))
print(json.dumps([[v.kind, v.detail] for v in verdicts]))
"""


def graded_by(verifier, answers, failures=()):
    """[kind, detail] of each answer, by a driver of its own: the verifier's URL is in its environment."""
    Verifier.failures, Verifier.batches = list(failures), []
    environment = {**os.environ, "MEGATRON_NFT_VERIFIER": verifier}
    command = [sys.executable, "-c", SCRIPT, answers]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout)


def test_a_verifier_gets_batches_and_is_asked_again_when_it_fails(verifier):
    kinds = [kind for kind, _ in graded_by(verifier, "0123456789", failures=[503])]
    assert kinds == ["right" if answer == "7" else "wrong" for answer in "0123456789"]
    assert Verifier.batches == [4, 4, 2]


def test_a_verifier_that_fails_for_good_makes_no_answer_wrong(verifier):
    (one, other) = graded_by(verifier, "67", failures=[500] * 100)
    assert one[0] == other[0] == "error" and "HTTP Error 500" in one[1]
    assert graded_by("", "7")[0][1].endswith("set it to the verifier's http URL")


def test_once_more_alone_makes_good_what_failed_in_a_batch(verifier):
    graded = graded_by(verifier, "678", failures=[400])  # which the grader doesn't send again, but the judge does
    assert [kind for kind, _ in graded] == ["wrong", "right", "wrong"]
    assert Verifier.batches == [1, 1, 1]
