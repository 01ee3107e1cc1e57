"""The operators' library: a schema, the torch reference for every device, shapes for tracing.

Defined below `torch.library.custom_op`, whose first call imports the compiler, which takes a second.
A kernel for another device is one more ``LIBRARY.impl`` of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["LIBRARY", "define"]

LIBRARY = torch.library.Library("feynkac", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(schema: str, reference: Callable[..., Any], shapes: Callable[..., Any]) -> Callable[..., Any]:
    """The operator of a schema ``name(...) -> ...``, which is not differentiated.

    Args:
        schema: in torch's language.
        reference: what it computes.
        shapes: empty results of the right shapes, for tracing.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"feynkac::{name}", shapes)
    operator: Callable[..., Any] = getattr(torch.ops.feynkac, name)
    return operator
