"""Who worked when in a step: the driver's stages, engines, graders and ranks, as a trace file and as rows to draw.

Spans come in from the report's stages and, once a step, from the processes (run/usage.py); a file that
https://ui.perfetto.dev and chrome://tracing open goes out for each of the newest steps, and the newest one's rows for
the page. Clocks: the driver's spans are taken by its own; other processes say the time of day, which preflight compares
between nodes.
"""

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_nft.observe.whole_file import replace_text

FOLDER = "timeline"
KEPT = 20
"""Newest steps whose files are kept."""
DRAWN_OF_A_KIND = 8
"""Engines, and ranks, that the page draws; the file has all."""
SHOWN_S = 1e-3
"""Of the driver's time between stages."""
MOST_SPANS = 20_000
"""That are held until a step ends."""


@dataclass(frozen=True)
class Span:
    """A process or thread at work on something."""

    track: str  # "driver", "engine 0", "actor rank 3", "graders"
    name: str
    start: float  # time of day, in seconds
    end: float


class Timeline:
    """The spans of the step under way. Any thread may add."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=MOST_SPANS)
        self._offset = time.time() - time.perf_counter()

    def add(self, track: str, name: str, start: float, end: float) -> None:
        """One of this process, in its time.perf_counter()."""
        self._spans.append(Span(track, name, start + self._offset, end + self._offset))

    def add_of_others(self, track: str, spans: Iterable[tuple[str, float, float]]) -> None:
        """(name, start, end) of another process, in time of day."""
        self._spans.extend(Span(track, *span) for span in spans)

    def take(self, start: float, end: float) -> list[Span]:
        """The spans of a step, from `start` to `end` (perf_counter), cut at both; earlier ones are forgotten."""
        first, last = start + self._offset, end + self._offset
        spans = [self._spans.popleft() for _ in range(len(self._spans))]
        within = [
            Span(s.track, s.name, max(s.start, first), min(s.end, last))
            for s in spans
            if s.end > first and s.start < last
        ]
        return [*within, *_between_stages(within, first, last)]


def _between_stages(spans: Sequence[Span], first: float, last: float) -> Iterator[Span]:
    """What the driver does outside its stages (records, files, looks at the batch), where it has any."""
    stages = sorted((span for span in spans if span.track == "driver"), key=lambda span: span.start)
    at = first
    for begin, end in [*((span.start, span.end) for span in stages), *([(last, last)] if stages else [])]:
        if begin - at > SHOWN_S:
            yield Span("driver", "between stages", at, begin)
        at = max(at, end)


def write_trace(folder: Path, step: int, spans: Sequence[Span]) -> None:
    """Writes folder/timeline/step_N.json, and deletes what is too old, or of a later step."""
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    replace_text(place / f"step_{step}.json", json.dumps(trace(spans), separators=(",", ":")))
    for path in place.glob("step_*.json"):
        number = path.stem.removeprefix("step_")
        if number.isdigit() and not step - KEPT < int(number) <= step:
            path.unlink(missing_ok=True)


def trace(spans: Sequence[Span]) -> dict[str, Any]:
    """In the Trace Event Format: complete events, in microseconds since the first; a thread for each track."""
    begin = min((span.start for span in spans), default=0.0)
    tracks = {track: number for number, track in enumerate(_in_order(spans))}
    events: list[Mapping[str, Any]] = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "megatron_nft"}}]
    for track, number in tracks.items():
        for name, value in (("thread_name", {"name": track}), ("thread_sort_index", {"sort_index": number})):
            events.append({"ph": "M", "pid": 0, "tid": number, "name": name, "args": value})
    for span in spans:
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": tracks[span.track],
                "cat": span.track.split(" ")[0],
                "name": span.name,
                "ts": round(1e6 * (span.start - begin)),
                "dur": round(1e6 * (span.end - span.start)),
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"begin": begin}}


def newest_rows(folder: Path, step: int) -> dict[str, Any] | None:
    """`rows_to_draw` of the newest file of a run that has come to this step; None: there is none, or none is whole."""
    numbers = [int(n) for p in (folder / FOLDER).glob("step_*.json") if (n := p.stem.removeprefix("step_")).isdigit()]
    if not (done := [number for number in numbers if number <= step]):
        return None
    try:
        spans = _spans_of(json.loads((folder / FOLDER / f"step_{max(done)}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):  # deleted by the run meanwhile, or another version's
        return None
    return rows_to_draw(max(done), spans)


def _spans_of(written: Mapping[str, Any]) -> list[Span]:
    """What `trace` was made of."""
    events, begin = written["traceEvents"], written["otherData"]["begin"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    return [
        Span(tracks[e["tid"]], e["name"], begin + e["ts"] / 1e6, begin + (e["ts"] + e["dur"]) / 1e6)
        for e in events
        if e["ph"] == "X"
    ]


def rows_to_draw(step: int, spans: Sequence[Span]) -> dict[str, Any]:
    """The newest step's for the page: of each track its spans as [name, from, to] in seconds since the first."""
    begin = min((span.start for span in spans), default=0.0)
    tracks = _in_order(spans)
    drawn: list[str] = []
    for track in tracks:
        kind = track.rstrip("0123456789")
        if sum(other.rstrip("0123456789") == kind for other in drawn) < DRAWN_OF_A_KIND:
            drawn.append(track)
    return {
        "step": step,
        "seconds": round(max((span.end for span in spans), default=begin) - begin, 4),
        "left_out": len(tracks) - len(drawn),
        "tracks": [
            [track, [[s.name, round(s.start - begin, 4), round(s.end - begin, 4)] for s in spans if s.track == track]]
            for track in drawn
        ],
    }


def _in_order(spans: Iterable[Span]) -> list[str]:
    """The driver, engines, graders, ranks; each kind by number."""

    def place(track: str) -> tuple[int, str, int]:
        kind = track.rstrip("0123456789")
        kinds = ("driver", "engine ", "graders", "actor rank ")
        return kinds.index(kind) if kind in kinds else len(kinds), kind, int(track[len(kind) :] or 0)

    return sorted({span.track for span in spans}, key=place)
