"""TensorBoard: a run's metrics as event files, by rollout step and once more by optimizer update.

    tensorboard --logdir runs/NAME/tensorboard

Written with the `tensorboard` package alone. Called by `observe.trackers`.
"""

from collections.abc import Sequence
from datetime import datetime

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from megatron_nft.config import Config, to_toml
from megatron_nft.observe.trackers import tracked_values
from megatron_nft.types import StepReport

AXES = {"by_step": "train/step", "by_update": "train/updates"}
"""Folder -> the metric that is its x axis."""


def make(config: Config) -> "TensorBoard":
    """A tracker that has not begun."""
    return TensorBoard(config)


class TensorBoard:
    """Event files below the run folder; those of earlier attempts are written anew, not added to."""

    def __init__(self, config: Config) -> None:
        self._config, self._folder = config, config.run_dir / "tensorboard"
        self._writers: dict[str, EventFileWriter] = {}

    def begin(self, records: Sequence[StepReport]) -> str:
        self.close()
        for name in AXES:
            for path in (self._folder / name).glob("events.out.tfevents.*"):
                path.unlink()
            self._writers[name] = EventFileWriter(str(self._folder / name))
        self._writers["by_step"].add_event(Event(step=0, summary=_text("recipe", to_toml(self._config))))
        for record in records:
            self._put(record)
        self._flush()
        return str(self._folder)

    def add(self, record: StepReport) -> None:
        self._put(record)
        self._flush()

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _put(self, record: StepReport) -> None:
        time = datetime.fromisoformat(record.time).timestamp()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in tracked_values(record).items()]
        for name, axis in AXES.items():
            step = int(record.metrics[axis])
            self._writers[name].add_event(Event(step=step, wall_time=time, summary=Summary(value=values)))

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def _text(tag: str, text: str) -> Summary:
    """For TensorBoard's text page, which shows Markdown."""
    markdown = "\n".join(f"    {line}" for line in text.splitlines())
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()])
    metadata = create_summary_metadata(display_name=tag, description="")
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
