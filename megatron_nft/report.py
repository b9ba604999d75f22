"""Shows runs: the page of one as it is now, or several on one page: curves, results, answers, differing settings.

    megatron-nft report runs/nft runs/dapo                 comparison.html
    megatron-nft report runs/* --out all.html
    megatron-nft report --serve runs/nft                   on localhost, reloading itself while the run lasts
    ssh -L 8008:localhost:8008 HOST                        then, from another machine, http://localhost:8008

One HTML file that needs no network. Runs may still be under way. Each run has a page of its own,
too: report.html in its folder.

Exit status: 0 done, 1 the page can't be written or served, 2 a folder is no run's.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from megatron_nft.config import path_argument
from megatron_nft.observe.compare import RunFolderError
from megatron_nft.observe.serve import HOST, make_server, page_of
from megatron_nft.observe.whole_file import replace_text

PORT = 8008


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = _parser().parse_args(argv)
    try:
        page = page_of(arguments.runs)
        if arguments.serve:
            return _serve(arguments.runs, arguments.port)
        replace_text(arguments.out, page)
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: can't write {arguments.out}: {error}; give --out another place", file=sys.stderr)
        return 1
    count = len(arguments.runs)
    print(f"{count} run{'s' if count > 1 else ''}: {arguments.out}")
    return 0


def _serve(runs: Sequence[Path], port: int) -> int:
    try:
        server = make_server(runs, port)
    except OSError as error:
        print(
            f"error: can't listen on port {port}: {error.strerror}; give --port another, or 0 for any", file=sys.stderr
        )
        return 1
    with server, suppress(KeyboardInterrupt):
        print(f"http://{HOST}:{server.server_address[1]}  (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-nft report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument("--out", type=path_argument, default=Path("comparison.html"), help="default: %(default)s")
    parser.add_argument("--serve", action="store_true", help="show it on this machine instead of writing a file")
    parser.add_argument("--port", type=int, default=PORT, help="of --serve, default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
