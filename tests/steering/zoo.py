"""Tiny diffusers pipelines that tests run over, built from configs: offline, a fraction of a second each."""

import pytest

pytest.importorskip("diffusers")

from .zoo_images import IMAGE_ROWS, sd_betas, sd_parts
from .zoo_modular import MODULAR_ROWS
from .zoo_row import GUIDANCE, NEGATIVE, PROMPT, Row, generators, media
from .zoo_schedulers import SETTINGS, Setting, setting
from .zoo_videos import VIDEO_ROWS

__all__ = [
    "GUIDANCE",
    "MODULAR_ROWS",
    "NEGATIVE",
    "PROMPT",
    "ROWS",
    "SETTINGS",
    "Row",
    "Setting",
    "generators",
    "media",
    "row",
    "sd_betas",
    "sd_parts",
    "setting",
    "with_setting",
]

ROWS: tuple[Row, ...] = IMAGE_ROWS + VIDEO_ROWS


def row(name: str) -> Row:
    """The row of that name."""
    return next(row for row in (*ROWS, *MODULAR_ROWS) if row.name == name)


def with_setting(setting: Setting) -> tuple[object, Row]:
    """A fresh pipeline that runs with the setting's scheduler, and the row it comes from."""
    if setting.package is not None:
        pytest.importorskip(setting.package)
    base = row(setting.pipeline)
    pipe = base.build()
    pipe.scheduler = setting.make()
    return pipe, base
