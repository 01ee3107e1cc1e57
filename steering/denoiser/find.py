"""The modules that a pipeline's loop calls, and what is wrapped around them already."""

import inspect
from typing import Any

from torch import nn

__all__ = [
    "argument_names",
    "denoisers_of",
    "has_caches",
    "is_compiled",
    "is_control",
    "mixes_branches",
    "named_denoisers",
    "plain_module",
]

_NAMES = (
    "unet",
    "transformer",
    "transformer_2",
    "transformer_3",
    "decoder",
    "prior",
    "controlnet",
    "model",
)  # other names: by package
_PACKAGES = ("diffusers.models.unets", "diffusers.models.transformers", "diffusers.models.controlnets")


def named_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Name and module of what the loop of a pipeline calls, modular ones too, control networks included; the modules as
    the pipeline holds them, compiled or not."""
    components = dict(getattr(pipe, "components", {}))
    components |= {name: getattr(pipe, name, None) for name in _NAMES}
    return {
        name: part
        for name, part in components.items()
        if isinstance(part, nn.Module) and (name in _NAMES or type(plain_module(part)).__module__.startswith(_PACKAGES))
    }


def denoisers_of(pipe: Any) -> tuple[nn.Module, ...]:
    """The modules of :func:`named_denoisers`, each once."""
    return tuple({id(part): part for part in named_denoisers(pipe).values()}.values())


def plain_module(module: nn.Module) -> nn.Module:
    """The module itself, without the wrapper that ``torch.compile(module)`` puts around it."""
    plain: nn.Module = getattr(module, "_orig_mod", module)
    return plain


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of its ``forward``."""
    parameters = list(inspect.signature(type(plain_module(module)).forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_control(module: nn.Module) -> bool:
    """A control network: its outputs are inputs of the denoiser, not predictions."""
    return "ControlNet" in type(plain_module(module)).__name__.replace("UNetControlNetXS", "")


def is_compiled(module: nn.Module) -> bool:
    """The module or a part of it is compiled, so that a new shape costs a new graph."""
    return plain_module(module) is not module or any(
        vars(part).get("_compiled_call_impl") is not None for part in module.modules()
    )


def has_caches(module: nn.Module) -> bool:
    """A feature cache of diffusers is on: it keeps tensors of the whole batch from one call to the next."""
    registries = (getattr(part, "_diffusers_hook", None) for part in module.modules())
    return any(
        getattr(hook, "_is_stateful", False)
        for registry in registries
        if registry is not None
        for hook in registry.hooks.values()
    )


def mixes_branches(module: nn.Module) -> bool:
    """Its attention cuts the batch into guidance branches itself (perturbed-attention guidance)."""
    processors = getattr(plain_module(module), "attn_processors", {})
    return any("PAG" in type(processor).__name__ for processor in processors.values())
