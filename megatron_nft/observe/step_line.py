"""The line that a step leaves on a terminal, or in a log: its columns, which of them fit, how each is written.

A step's metrics come in, text goes out; `observe.console` prints it. On a terminal a line is a row of a table, whose
head comes again now and then, as many columns as fit, what matters first; a log's line names each number, and is as
long as it gets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from megatron_nft.observe.metrics import STAGES

SMALL_SHARE = 0.02
"""Of the step: stages that take less are not named."""
FULL_WIDTH = 140
"""Columns of a terminal from which on stages are named, too."""
STAGES_WIDTH = 34
"""At least, of such a line."""
GAP = "  "


@dataclass(frozen=True, kw_only=True)
class StepView:
    """What there is to say of a step."""

    step: int
    steps: int
    updates: int  # that all steps make
    metrics: Mapping[str, float]
    accuracy: float | None  # of the latest evaluation
    eta_s: float
    now: datetime


@dataclass(frozen=True)
class Column:
    """One number of the line."""

    head: str
    width: int
    text: Callable[[StepView], str | None]  # None: was not measured
    short: Callable[[StepView], str] | None = None  # where a table has no room for the text

    def cell(self, view: StepView) -> str:
        """Of a table, exactly so wide: a number that has no room is no number, rather than another's."""
        text = self.text(view)
        if text is not None and len(text) > self.width and self.short is not None:
            text = self.short(view)
        text = "-" if text is None else text
        return f"{text if len(text) <= self.width else '#' * self.width:>{self.width}}"


def table_head(view: StepView, width: int) -> str:
    """The names above the rows of a terminal so wide."""
    heads = [" " * len(_name(view))] + [f"{c.head:>{c.width}}" for c in _that_fit(view, width)]
    return GAP.join(heads).rstrip()[:width]


def table_row(view: StepView, width: int) -> str:
    """The step as a row of a terminal so wide."""
    row = GAP.join([_name(view)] + [column.cell(view) for column in _that_fit(view, width)])[:width]
    if width >= FULL_WIDTH:
        for stage in _stages(view):
            if len(row) + len(GAP) + len(stage) > width:
                break
            row += GAP + stage
    return row


def log_line(view: StepView) -> str:
    """The step as a line of a log: what was measured, by name."""
    parts = [_name(view)]
    for column in COLUMNS:
        if (text := column.text(view)) is not None:
            parts.append(f"{column.head} {text:>{column.width}}")
    if stages := _stages(view):
        parts.append(" ".join(stages))
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """42s, 3m12s, 2h05m, 5d02h: six characters at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    hours = whole // 3600
    if hours < 100:
        return f"{hours}h{whole % 3600 // 60:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h" if hours < 2400 else f"{hours // 24}d"


def short_number(value: float) -> str:
    """A count in five characters at most: 41, 1234, 12.3k, 123k, 1.2M."""
    if value < 9999.5:
        return f"{value:.0f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G")):
        if value < 0.9995 * limit:
            scaled = value / (limit / 1e3)
            return f"{scaled:.1f}{unit}" if scaled < 99.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0e}"


def _name(view: StepView) -> str:
    longest = len(f"step {view.steps}/{view.steps}")
    return f"step {view.step}/{view.steps}".ljust(longest)


def _that_fit(view: StepView, width: int) -> list[Column]:
    """As many as there is room for, in their order; at FULL_WIDTH some leave theirs to the stages."""
    room = width - len(_name(view))
    shown = []
    for number, column in enumerate(COLUMNS):
        kept = STAGES_WIDTH if width >= FULL_WIDTH and number >= NUM_FIRST else 0
        if room - kept < len(GAP) + column.width:
            break
        room -= len(GAP) + column.width
        shown.append(column)
    return shown


def _stages(view: StepView) -> list[str]:
    """The longest first."""
    total = view.metrics.get("time/step_s", 0.0)
    seconds = {stage: view.metrics.get(f"time/{stage}_s", 0.0) for stage in STAGES}
    large = {stage: s for stage, s in seconds.items() if s > SMALL_SHARE * total}
    return [f"{stage} {_seconds(large[stage])}" for stage in sorted(large, key=lambda stage: -large[stage])]


def _seconds(value: float) -> str:
    if value >= 99_999.5:
        return duration(value)
    return f"{value:.1f}s" if value < 999.95 else f"{value:.0f}s"


def _of(name: str, write: Callable[[float], str]) -> Callable[[StepView], str | None]:
    return lambda view: write(view.metrics[name]) if name in view.metrics else None


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _fine_percent(value: float) -> str:
    """51.7%, and 100%: five characters."""
    return f"{100 * value:.1f}%" if value < 0.9995 else _percent(value)


def _norm(value: float) -> str:
    """0.32, 132, 12.3k: five characters."""
    return f"{value:.2f}" if value < 99.995 else short_number(value)


def _exponent(value: float) -> str:
    """3e-07: five characters."""
    return f"{value:.0e}" if value == value else "nan"


def _decimal(value: float) -> str:
    """Four decimals, or an exponent where those would show only zeros, or have no room."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 or abs(value) > 99 else f"{value:.4f}"


def _grouped(of: tuple[str, ...]) -> Callable[[StepView], str | None]:
    def text(view: StepView) -> str | None:
        if of[0] not in view.metrics:
            return None
        return "/".join(short_number(view.metrics.get(name, 0.0)) for name in of)

    return text


def _groups(view: StepView) -> tuple[float, float] | None:
    """Mixed ones, and all."""
    kinds = ("mixed", "all_right", "all_wrong")
    counts = [view.metrics.get(f"rollout/groups_{kind}") for kind in kinds]
    return None if None in counts else (counts[0], sum(counts))


def _mixed(view: StepView) -> str | None:
    return None if (groups := _groups(view)) is None else f"{groups[0]:.0f}/{groups[1]:.0f}"


def _mixed_share(view: StepView) -> str:
    mixed, graded = _groups(view) or (0.0, 0.0)
    return _percent(mixed / max(graded, 1.0))


def _memory(view: StepView) -> str | None:
    for place in ("gpu", "host"):
        if found := [v for name, v in view.metrics.items() if name.startswith(f"memory/{place}_")]:
            return f"{most:.1f}G" if (most := max(found)) < 999.95 else f"{most:.0f}G"
    return None


def _updates(view: StepView) -> float:
    return view.metrics.get("train/updates", 0)


def _ends(view: StepView) -> str:
    """The hour, or of another day than today's or tomorrow's small hours, the day."""
    end = view.now + timedelta(seconds=view.eta_s)
    return end.strftime("%H:%M") if view.eta_s < 20 * 3600 else end.strftime("%d %b")


COLUMNS = (
    Column("acc", 5, lambda view: None if view.accuracy is None else _fine_percent(view.accuracy)),
    Column("right", 5, _of("nft/correct_rate", _percent)),
    Column("length", 6, _of("rollout/answer_tokens_mean", short_number)),
    Column("cut", 4, _of("rollout/truncated_fraction", _percent)),
    Column("gap", 5, _of("rollout/logprob_gap_mean", _exponent)),
    Column("tok/s", 5, _of("perf/rollout_tokens_per_s", short_number)),
    Column("time", 6, _of("time/step_s", _seconds)),
    Column("ETA", 6, lambda view: duration(view.eta_s)),
    Column("ends", 6, _ends),
    Column("loss", 8, _of("nft/loss", _decimal)),
    Column("mixed", 8, _mixed, short=_mixed_share),
    Column("grad", 5, _of("actor/grad_norm", _norm)),
    Column("rate", 7, _of("actor/learning_rate", lambda value: f"{value:.1e}")),
    Column("MFU", 5, _of("perf/mfu", _fine_percent)),
    Column("memory", 6, _memory),
    Column("update", 9, lambda view: f"{_updates(view):.0f}/{view.updates}", lambda view: f"{_updates(view):.0f}"),
)
NUM_FIRST = 9
"""Columns that a terminal of 80 has."""
