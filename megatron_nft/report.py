"""Compares runs: one page with the curves of several, their results, and the settings in which they differ.

    megatron-nft report runs/nft runs/dapo
    megatron-nft report runs/* --out all.html

One HTML file that needs no network. Runs may still be under way. Each run has a page of its own,
too: report.html in its folder.

Exit status: 0 done, 1 the page can't be written, 2 a folder is no run's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_nft.config import path_argument
from megatron_nft.observe.compare import RunFolderError, read_run, render_comparison
from megatron_nft.observe.whole_file import replace_text


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument("--out", type=path_argument, default=Path("comparison.html"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        page = render_comparison([read_run(folder) for folder in arguments.runs])
        replace_text(arguments.out, page)
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: can't write {arguments.out}: {error}; give --out another place", file=sys.stderr)
        return 1
    print(f"{len(arguments.runs)} runs: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
