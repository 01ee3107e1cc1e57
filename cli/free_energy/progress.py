"""The progress bar of drawing samples, and the line of ``metrics.jsonl`` that each chunk leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...fkc.checkpoint import load_state
from ...fkc.weights import log_mean_exp
from ..run_folder import RunFolder

__all__ = ["sampling_progress"]

Report = Callable[[int, int, float, int], None]


class _Metrics:
    """Writes a line a chunk; chunks that an earlier call had finished keep the line they have."""

    def __init__(self, folder: RunFolder, kT: float) -> None:
        self.folder, self.kT = folder, kT
        self.chunk = 0
        self.written = folder.keep_metrics()
        self.loaded = len(list(folder.checkpoint.glob("chunk-*/state.json")))
        self.calls = 0
        self.clock = time.perf_counter()
        self.log_sums: list[torch.Tensor] = []

    def record(self, done: int, ess: float, calls: int) -> float | None:
        """Note a finished chunk; returns the energy calls a second in it, None for a loaded one."""
        now = time.perf_counter()
        rate = None
        if self.chunk >= self.loaded:
            rate = (calls - self.calls) / max(now - self.clock, 1e-9)
        line = {
            "chunk": self.chunk,
            "samples": done,
            "energy_calls": calls,
            "energy_calls_per_second": None if rate is None else round(rate, 1),
            "ess": ess,
            "ess_fraction": ess / done,
            "log_evidence": self._log_evidence(),
        }
        if self.chunk >= self.written:
            self.folder.append_metrics(line)
        self.chunk, self.calls, self.clock = self.chunk + 1, calls, time.perf_counter()
        return rate

    def _log_evidence(self) -> float:
        """log Z of all draws so far, from the chunk's own record."""
        tensors, _ = load_state(self.folder.checkpoint / f"chunk-{self.chunk:06d}")
        raw = -tensors["energies"] / self.kT - tensors["log_q"]
        self.log_sums.append(torch.where(torch.isfinite(raw), raw, -torch.inf))
        return float(log_mean_exp(torch.cat(self.log_sums)))


@contextmanager
def sampling_progress(console: Console, folder: RunFolder, kT: float) -> Iterator[Report]:
    """Show a bar while samples are drawn; yields the callback that `importance_sample` calls after each chunk."""
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ESS {task.fields[ess]}"),
        TextColumn("{task.fields[rate]} energy calls/s"),
        TimeRemainingColumn(),
    )
    metrics = _Metrics(folder, kT)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("drawing", total=None, ess="-", rate="-")

        def report(done: int, total: int, ess: float, calls: int) -> None:
            rate = metrics.record(done, ess, calls)
            bar.update(task, completed=done, total=total, ess=f"{ess:,.0f} ({ess / done:.1%})")
            if rate is not None:
                bar.update(task, rate=f"{rate:,.0f}")

        yield report
