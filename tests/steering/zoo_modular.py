"""Modular pipelines made of the same parts as the rows of the zoo."""

from typing import Any

import pytest

from .zoo_images import IMAGE_ROWS
from .zoo_row import NEGATIVE, PROMPT, Row
from .zoo_videos import VIDEO_ROWS

__all__ = ["MODULAR_ROWS"]


def _modular(blocks: str, base: str) -> Any:
    modular = pytest.importorskip("diffusers.modular_pipelines")
    source = parts_of(base)
    pipe = getattr(modular, blocks)().init_pipeline()
    expected = {spec.name for spec in pipe.blocks.expected_components}
    pipe.update_components(**{name: part for name, part in source.items() if name in expected})
    return pipe


def parts_of(name: str) -> dict[str, Any]:
    """Components of a row's pipeline, those it has."""
    row = next(row for row in (*IMAGE_ROWS, *VIDEO_ROWS) if row.name == name)
    return {name: part for name, part in row.make().components.items() if part is not None}


_TEXT = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "height": 16, "width": 16}

MODULAR_ROWS: tuple[Row, ...] = (
    Row(
        "modular_sd3",
        lambda: _modular("StableDiffusion3AutoBlocks", "sd3"),
        _TEXT | {"max_sequence_length": 16, "output": "images"},
        passes_generator=False,
        native_x0=False,
        branches=(),
    ),
    Row(
        "modular_sdxl",
        lambda: _modular("StableDiffusionXLAutoBlocks", "sdxl"),
        _TEXT | {"output": "images"},
        branches=(),
    ),
    Row(
        "modular_wan",
        lambda: _modular("WanBlocks", "wan"),
        _TEXT | {"max_sequence_length": 16, "num_frames": 5, "output": "videos"},
        "num_videos_per_prompt",
        passes_generator=False,
        native_x0=False,
        media="videos",
        branches=(),
    ),
)
