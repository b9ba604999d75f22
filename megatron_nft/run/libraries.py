"""Where libraries' warnings go while a run lasts: into a log of its folder, not between the lines for people.

Ranks and engines write theirs into logs of their own (cluster/processes.py); this is the driver's. Called by run.py.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIBRARIES = ("py.warnings", "transformers", "torch", "megatron", "vllm", "huggingface_hub", "datasets")
"""Loggers; the first has what `warnings` says. Ray's stay: they tell of lost nodes."""


@contextmanager
def libraries_into(log: Path) -> Iterator[None]:
    """What they say goes there for the length of the block."""
    with suppress(OSError):  # what can't be written there is said by those who need it
        log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
