"""Records on a disk that is full for a while: none is lost, none is there twice, none in part."""

import json
import os
import resource
import signal

import pytest

from megatron_nft.observe.records import Lines, read_records


@pytest.fixture
def limit():
    """limit(so many bytes): no file may have more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "Python has it raise an error"

    def set_limit(num_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))

    yield set_limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_has_no_room_is_written_once_there_is_some(tmp_path, limit):
    lines = Lines(tmp_path / "m.jsonl")
    assert lines.append({"step": 1}) == ""
    limit(os.path.getsize(tmp_path / "m.jsonl") + 5)
    for step in (2, 3):
        assert "File too large" in lines.append({"step": step})
    assert [record["step"] for record in read_records(tmp_path / "m.jsonl")] == [1], "half of the second is there"
    limit(resource.RLIM_INFINITY)
    assert lines.append({"step": 4}) == ""
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_an_end_tries_once_more(tmp_path, limit):
    lines = Lines(tmp_path / "m.jsonl")
    limit(1)
    assert lines.append({"step": 1})
    limit(resource.RLIM_INFINITY)
    lines.close()
    assert [record["step"] for record in read_records(tmp_path / "m.jsonl")] == [1]
