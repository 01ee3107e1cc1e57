"""A short identity of the parameters of a proposal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

__all__ = ["fingerprint"]


def fingerprint(state: Mapping[str, Tensor], *facts: object) -> str:
    """16 hexadecimal digits of a SHA-256 over the tensors of ``state`` and the text of ``facts``."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
