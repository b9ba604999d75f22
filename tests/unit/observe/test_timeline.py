"""Who worked when: spans of the driver and of other processes, cut to a step, as a trace and as rows to draw."""

import json
import time

import pytest

from megatron_nft.observe.timeline import DRAWN_OF_A_KIND, KEPT, Span, Timeline, rows_to_draw, trace, write_trace

SPANS = [
    Span("actor rank 10", "train", 12.0, 13.0),
    Span("actor rank 2", "train", 12.0, 13.5),
    Span("graders", "grade", 11.5, 11.6),
    Span("driver", "rollout", 10.0, 12.0),
    Span("driver", "train", 12.0, 14.0),
    Span("engine 0", "rollout", 10.1, 11.9),
]


def test_a_step_has_its_own_spans_cut_at_its_ends():
    timeline, now, day = Timeline(), time.perf_counter(), time.time()
    timeline.add("driver", "evaluate", now - 9, now - 5)  # before the step
    timeline.add("driver", "rollout", now, now + 1)
    timeline.add_of_others("engine 0", [("rollout", day - 1, day + 0.5), ("rollout", day + 2.9, day + 9)])
    spans = timeline.take(now, now + 3)
    assert [(s.track, s.name) for s in spans] == [
        ("driver", "rollout"),
        ("engine 0", "rollout"),
        ("engine 0", "rollout"),
        ("driver", "between stages"),
    ]
    lengths = [s.end - s.start for s in spans]
    assert lengths == pytest.approx([1.0, 0.5, 0.1, 2.0], abs=0.01)
    assert timeline.take(now, now + 3) == []


def test_the_trace_is_in_the_format_that_viewers_read():
    """https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete and metadata events."""
    made = json.loads(json.dumps(trace(SPANS)))
    events = [e for e in made["traceEvents"] if e["ph"] == "X"]
    assert len(events) == len(SPANS) and all({"name", "ts", "dur", "pid", "tid"} <= e.keys() for e in events)
    names = {e["tid"]: e["args"]["name"] for e in made["traceEvents"] if e["name"] == "thread_name"}
    assert [names[i] for i in sorted(names)] == ["driver", "engine 0", "graders", "actor rank 2", "actor rank 10"]
    driver = {e["name"]: (e["ts"], e["dur"]) for e in events if names[e["tid"]] == "driver"}
    assert driver == {"rollout": (0, 2_000_000), "train": (2_000_000, 2_000_000)}  # microseconds since the first


def test_the_page_draws_some_of_each_kind():
    many = [*SPANS, *(Span(f"engine {i}", "rollout", 10.0, 11.0) for i in range(1, 40))]
    rows = rows_to_draw(7, many)
    assert [name for name, _ in rows["tracks"]][: DRAWN_OF_A_KIND + 1] == ["driver", *(f"engine {i}" for i in range(8))]
    assert (rows["step"], rows["seconds"], rows["left_out"]) == (7, 4.0, 32)
    assert dict(rows["tracks"])["driver"] == [["rollout", 0.0, 2.0], ["train", 2.0, 4.0]]


def test_only_the_newest_steps_are_kept_and_none_of_a_later_one(tmp_path):
    for step in (1, 2, KEPT + 1, KEPT + 5, KEPT + 2):
        write_trace(tmp_path, step, SPANS)
    steps = sorted(int(path.stem.removeprefix("step_")) for path in (tmp_path / "timeline").iterdir())
    assert steps == [KEPT + 1, KEPT + 2]
