"""The program; and what is said if a Python without its packages starts it, as `python -m megatron_nft.X`, too."""

import sys
from types import TracebackType


def what_is_missing(error: ModuleNotFoundError, command: str) -> str | None:
    """A line; None if it is no package that one installs: a mistake of our own keeps its traceback."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "megatron_nft", "checkpoint_tools"):
        return None
    return (
        f"error: {command} needs the package {package!r}, which is not installed here: ./launch/install.sh installs "
        "what a CPU needs, requirements-gpu.txt says what a GPU does; if they are there: source .venv/bin/activate"
    )


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook: while a command's module is loaded; what it does once it runs is its own."""
    at, runs = trace, False
    while at is not None:
        at, runs = at.tb_next, runs or at.tb_frame.f_code.co_name == "main"
    command = f"python -m {sys.orig_argv[sys.orig_argv.index('-m') + 1]}" if "-m" in sys.orig_argv else "this"
    line = None if runs or not isinstance(error, ModuleNotFoundError) else what_is_missing(error, command)
    if line is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(line, file=sys.stderr)


if sys.argv[:1] == ["-m"]:  # so it is while `python -m megatron_nft.X` looks for X
    sys.excepthook = _say_what_is_missing
