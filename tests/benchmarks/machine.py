"""Name of the machine and the libraries, for the head of every benchmark."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> str:
    """One line: processor, cores, instruction set, date, versions."""
    model, flags = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = line
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return (
        f"{model}, {os.cpu_count()} cores, {vectors}, GPU {gpu}; {datetime.date.today().isoformat()}; "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )
