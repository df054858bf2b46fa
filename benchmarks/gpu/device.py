"""How calls are timed on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class Device:
    """How calls are timed; on the CPU, where it is a dry run."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.name = "cpu" if dry_run else "cuda"
        l2 = 0 if dry_run else torch.cuda.get_device_properties(0).L2_cache_size
        self.cold_bytes = 4 * l2

    def time(self, calls: list[Call], rounds: int) -> list[float]:
        """Seconds for one of the calls, for each round.

        The calls have operands of their own, more than the caches keep, and are captured in one
        graph: no launch of the host's is in the figure. What they return is kept, so that no call
        writes where the one before it wrote.
        """
        for call in calls[:2]:
            call()
        if self.dry_run:
            return [self._on_cpu(calls) for _ in range(rounds)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call() for call in calls]
        graph.replay()
        seconds = []
        for _ in range(rounds):
            # The host gets ahead meanwhile: its launch of the graph is not to be timed.
            torch.cuda._sleep(500_000 + 20_000 * len(calls))
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3 / len(calls))
        del kept
        return seconds

    def time_eager(self, call: Call) -> float:
        """Seconds that a call takes the host, when it is called again and again."""
        count = 10 if self.dry_run else 1000
        for _ in range(count // 10):
            call()
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        self.synchronize()
        return (time.perf_counter() - begin) / count

    def peak_bytes(self, call: Call) -> int:
        """Memory that a call takes beside its operands."""
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

    @staticmethod
    def _on_cpu(calls: list[Call]) -> float:
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)
