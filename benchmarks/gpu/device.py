"""How calls are timed on a GPU."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Generic, TypeVar

import torch

Call = Callable[[], object]
Name = TypeVar("Name")
GRAPH_SECONDS = 2e-3
"""What lies between an event and a graph, some microseconds, is little beside it."""
MOST_CALLS = 256
BUSY_SECONDS = 1
"""After which a GPU that was idle has its clocks up."""


class Device:
    """What is asked of a GPU; of the CPU, where it is a dry run."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.name = "cpu" if dry_run else "cuda"
        l2 = 0 if dry_run else torch.cuda.get_device_properties(0).L2_cache_size
        self.cold_bytes = 4 * l2

    def time_eager(self, calls: Mapping[Name, Call]) -> dict[Name, float]:
        """Median seconds that a call takes the host, in bursts of the calls in turn."""
        bursts, count = (3, 2) if self.dry_run else (20, 100)
        seconds: dict[Name, list[float]] = {name: [] for name in calls}
        gc.disable()
        try:
            for _ in range(bursts):
                for name, call in calls.items():
                    self.synchronize()
                    begin = time.perf_counter()
                    for _ in range(count):
                        call()
                    self.synchronize()
                    seconds[name].append((time.perf_counter() - begin) / count)
        finally:
            gc.enable()
        return {name: median(each) for name, each in seconds.items()}

    def peak_bytes(self, call: Call) -> int:
        """Memory that a call takes beside its operands."""
        call()  # which may make what is made once
        if self.dry_run:
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def synchronize(self) -> None:
        if not self.dry_run:
            torch.cuda.synchronize()


def count_of_calls(nbytes: int, sets: int) -> int:
    """So many that move nbytes each last GRAPH_SECONDS on a fast GPU; each set equally often."""
    seconds = 1e-6 + nbytes / 5e12
    return sets * math.ceil(min(GRAPH_SECONDS / seconds, MOST_CALLS) / sets)


@dataclass(frozen=True)
class Graph:
    replay: Call
    calls: int
    head_start: int
    """Cycles in which the host has launched it."""


class Race(Generic[Name]):
    """Calls that are timed in turn, round by round: what drifts, as clocks do, hits all alike.

    nbytes is what each of them moves at least.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device, self._nbytes = device, nbytes
        self._graphs: dict[Name, Graph] = {}
        # One memory for what all of them write, which nobody reads.
        self._pool = None if device.dry_run else torch.cuda.graph_pool_handle()

    def add(self, name: Name, calls: Sequence[Call]) -> None:
        """The calls have operands of their own, more than the caches keep, and are captured in one
        graph, again and again: no launch of the host's is in their time. What the last ones return
        is kept, so that no call writes where the one before it wrote."""
        calls[0]()
        if self._device.dry_run:
            self._graphs[name] = Graph(lambda: [call() for call in calls], len(calls), 0)
            return
        count = count_of_calls(self._nbytes, len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            kept: deque[object] = deque(maxlen=len(calls))
            for call in islice(cycle(calls), count):
                kept.append(call())
        graph.replay()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        launch = time.perf_counter() - begin
        torch.cuda.synchronize()
        self._graphs[name] = Graph(graph.replay, count, int(2e9 * (2 * launch + 5e-5)))

    def run(self, rounds: int) -> dict[Name, list[float]]:
        """Seconds for one of the calls, for each round."""
        until = time.monotonic() + (0 if self._device.dry_run else BUSY_SECONDS)
        while time.monotonic() < until:
            self._round()
        found = [self._round() for _ in range(rounds)]
        return {name: [seconds[name] for seconds in found] for name in self._graphs}

    def _round(self) -> dict[Name, float]:
        if self._device.dry_run:
            return {name: self._on_cpu(graph) for name, graph in self._graphs.items()}
        events = {}
        for name, graph in self._graphs.items():
            # The host gets ahead meanwhile: its launch of the graph is not to be timed.
            torch.cuda._sleep(graph.head_start)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            events[name] = begin, end
        torch.cuda.synchronize()
        return {
            name: begin.elapsed_time(end) / 1e3 / self._graphs[name].calls
            for name, (begin, end) in events.items()
        }

    @staticmethod
    def _on_cpu(graph: Graph) -> float:
        begin = time.perf_counter()
        graph.replay()
        return (time.perf_counter() - begin) / graph.calls
