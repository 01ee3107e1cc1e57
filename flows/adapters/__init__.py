"""Proposals made elsewhere, brought under the :class:`feynkac.flows.Proposal` protocol."""

from .function import FunctionProposal
from .zuko import ZukoProposal

__all__ = ["FunctionProposal", "ZukoProposal"]
