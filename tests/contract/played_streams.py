"""A GPU's streams and events, played by threads, and a process group on them, for code that would otherwise need CUDA.

What a stream has been given is done in order, one thing after the other, beside the other streams. `synchronize` waits
for all of it, as CUDA's does. A broadcast lies on the group's own stream until its receiver takes it, or `abort`.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Stream:
    """In order, in a thread of its own."""

    def __init__(self, *_: Any) -> None:
        self._work: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()

    def put(self, work: Callable[[], Any]) -> None:
        self._work.put(work)


class Device:
    """One GPU; `install` puts it in the place of torch.cuda's functions."""

    def __init__(self) -> None:
        self.default, self.streams, self._mine = Stream(), [], threading.local()
        self.streams.append(self.default)

    def stream(self, *_: Any) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def current(self, *_: Any) -> Stream:
        return getattr(self._mine, "stream", self.default)

    def set_stream(self, stream: Stream) -> None:
        self._mine.stream = stream

    def event(self, **_: Any) -> "Event":
        return Event(self)

    def synchronize(self, *_: Any) -> None:
        for stream in list(self.streams):
            done = threading.Event()
            stream.put(done.set)
            done.wait()

    def install(self, monkeypatch: Any) -> None:
        import torch

        for name, played in {
            "Stream": self.stream, "Event": self.event, "current_stream": self.current, "set_stream": self.set_stream,
            "synchronize": self.synchronize, "set_device": lambda device: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, played)


class Event:
    def __init__(self, device: Device) -> None:
        self._device, self._reached = device, threading.Event()

    def record(self, stream: Stream | None = None) -> None:
        self._reached.clear()
        (stream or self._device.current()).put(self._reached.set)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._device.current()).put(self._reached.wait)

    def synchronize(self) -> None:
        self._reached.wait()

    def query(self) -> bool:
        return self._reached.is_set()


class Group:
    """ProcessGroupNCCL as a leader sees it.

    Args:
        take: waits until the receiver has taken the broadcast, with the tensor in its hands.
    """

    def __init__(self, device: Device, take: Callable[[Any, threading.Event], None]) -> None:
        self._device, self._take, self._stream = device, take, device.stream()
        self.aborted = threading.Event()

    def broadcast(self, tensors: list[Any], options: Any) -> "Group":
        assert (options.rootRank, options.rootTensor) == (0, 0)
        before = self._device.event()
        before.record()
        before.wait(self._stream)
        self._stream.put(lambda: self._take(tensors[0], self.aborted))
        return self

    def wait(self) -> None:
        after = self._device.event()
        after.record(self._stream)
        after.wait()

    def abort(self) -> None:
        self.aborted.set()
