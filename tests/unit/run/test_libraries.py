"""Libraries' warnings: in the run's log, not on the terminal."""

import logging
import warnings

from megatron_nft.run.libraries import libraries_into


def test_warnings_go_to_the_log_and_come_back_afterwards(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)  # as it is before a test lowers it
    log, logger = tmp_path / "logs" / "driver.log", logging.getLogger("transformers.models")
    own = logging.getLogger("megatron_nft.cluster.fleet")
    with libraries_into(log):
        warnings.warn("an old argument", FutureWarning, stacklevel=1)
        logger.warning("slow tokenizer")
        own.warning("restarting engine 0")
    said = capfd.readouterr().err
    assert "an old argument" not in said and "slow tokenizer" not in said
    text = log.read_text()
    assert "an old argument" in text and "transformers.models WARNING: slow tokenizer" in text
    assert "restarting" not in text, "what the program itself says stays"
    assert logging.getLogger("transformers").propagate or logging.getLogger("transformers").handlers


def test_without_a_warning_there_is_no_log(tmp_path):
    with libraries_into(tmp_path / "driver.log"):
        pass
    assert not (tmp_path / "driver.log").exists()
