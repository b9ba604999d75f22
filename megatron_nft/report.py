"""Compares runs: one page with the curves of several, their results, and the settings in which they differ.

    python -m megatron_nft.report runs/nft runs/dapo [--out FILE]

Each run has a page of its own, report.html, in its folder.
"""

import argparse
import sys
from pathlib import Path

from megatron_nft.observe.compare import RunFolderError, read_run, render_comparison
from megatron_nft.observe.html import replace_text


def main() -> int:
    """The command line; exit status 0 done, 1 the page can't be written, 2 a folder is no run's."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_nft.report",
        description="Draws several runs on one page: one HTML file that needs no network.",
        epilog="example: python -m megatron_nft.report runs/nft runs/dapo --out nft_and_dapo.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="default: %(default)s")
    arguments = parser.parse_args()
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
