"""The tap: stands between a pipeline and its denoisers while a block lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import BatchLayoutError, SteeringError
from .branches import Branches, fit_branches
from .find import denoisers_of, has_caches, mixes_branches
from .gradient import Recorded, differentiable_output, first_tensor
from .guard import LayoutGuard
from .pieces import evaluate
from .rows import Call
from .silence import zeros_for
from .tapped import CALL, MARK, Tapped, plan_for, refuse_caches

__all__ = ["DenoiserTap"]


class DenoiserTap:
    """Micro-batches, skips, silences, records and checks the calls of a pipeline's denoisers.

    The call is taken over above the module's hooks and compiled code (``nn.Module.__call__`` looks for
    ``_compiled_call_impl`` first), so that offload hooks, ``torch.compile`` and ``isinstance`` see what they always do.

    Args:
        pipe: a diffusers pipeline, modular or not. Its modules are wrapped within :meth:`attached` only.
        chunk_size: rows of the scheduler's step evaluated at a time, with all their guidance branches; None: all.
        record: keep the calls of one step, for :meth:`branches` and :meth:`differentiable`.

    Attributes:
        modules: the denoisers and control networks.
        keep: int64 (B,) or None: row b is a copy of row ``keep[b]``. Only rows that are their own copy are evaluated;
            a row that turns out to be given other inputs than ``keep[b]`` is evaluated nevertheless.
        one_by_one: calls hold one sample each (lock-step): they are passed on whole, compared with nothing.
        silent: nothing is evaluated, zeros of the right shape are returned.
        rows_evaluated: rows that the denoisers ran since :meth:`begin_run`, guidance branches, padding and runs for
            gradients included, control networks left out.

    Raises:
        SteeringError: the pipeline has no denoiser that is known here, and one is to be cut or recorded.
        ValueError: ``chunk_size`` below 1.
    """

    def __init__(self, pipe: Any, *, chunk_size: int | None = None, record: bool = False) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1")
        self.modules = denoisers_of(pipe)
        if not self.modules and (chunk_size is not None or record):
            raise SteeringError(f"{type(pipe).__name__} has no denoiser that is known here (unet, transformer, ...)")
        self.chunk_size, self.record = chunk_size, record
        self.one_by_one = False
        self._tapped: list[Tapped] = []
        self.begin_run()

    # --- the life of a run -----------------------------------------------------------------------------------------

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Wrap the denoisers within the block.

        Raises:
            SteeringError: one of them is wrapped already, or ``chunk_size`` is given beside a feature cache.
        """
        self._tapped.clear()
        wrapped = [(module, self._wrap(module)) for module in self.modules]
        before = [(module, vars(module).get(CALL), CALL in vars(module)) for module in self.modules]
        for module, wrapper in wrapped:
            object.__setattr__(module, CALL, wrapper)
        try:
            yield
        finally:
            for (module, own, present), (_, wrapper) in zip(before, wrapped, strict=True):
                if vars(module).get(CALL) is not wrapper:
                    continue  # compiled in place inside the block
                object.__setattr__(module, CALL, own)
                if not present:
                    object.__delattr__(module, CALL)
            self._tapped.clear()
            self._calls.clear()

    def begin_run(self, rows: int | None = None, *, unit: int = 1) -> None:
        """A run begins: forget calls, copies, counts and a pending check, and evaluate again.

        Args:
            rows: B, what the scheduler's step will see, tiles included; None if it is not known yet. Then the batch is
                cut into pieces of ``chunk_size`` rows of hidden states whatever branch they belong to.
            unit: B must be a multiple of this.

        Raises:
            BatchLayoutError: ``rows`` is no multiple of ``unit``.
        """
        self._block, self._unit = rows, unit
        self._calls: list[Recorded] = []
        self._guard: LayoutGuard | None = None
        self._compared: list[bool] = []
        self.keep: Tensor | None = None
        self.silent = False
        self.rows_evaluated = 0
        for tapped in self._tapped:
            tapped.checked = False
        if rows is not None:
            self.confirm_rows(rows)

    def confirm_rows(self, rows: int) -> None:
        """Check B once the scheduler's step has been called; how a running run is cut does not change, so that
        compiled code goes on seeing one shape.

        Raises:
            BatchLayoutError: it is not what :meth:`begin_run` was told, or no multiple of the unit.
        """
        if rows % self._unit or (self._block is not None and rows != self._block):
            wanted = f"a multiple of {self._unit}" if self._block in (None, rows) else str(self._block)
            raise BatchLayoutError(f"the scheduler's step sees {rows} rows, expected {wanted}")

    def check_layout(self, populations: int | None, particles: int) -> None:
        """Compare the conditioning of each population's rows at the calls of one step: this one if the denoiser is
        still to be called for it, else the next.

        Best said before the first call of a run (``set_timesteps`` comes before it); P need not be known.

        Args:
            populations: P, or None for any number.
            particles: rows of a population side by side, candidates included.

        Raises:
            BatchLayoutError: from the denoiser's call; see :class:`LayoutGuard`.
        """
        self._guard, self._compared = LayoutGuard(populations, particles), []

    def end_step(self) -> None:
        """A step is over: forget its calls.

        Raises:
            BatchLayoutError: the conditioning was to be checked, and the calls' rows were no multiple of the
                populations' rows.
        """
        self._calls.clear()
        guard, compared = self._guard, self._compared
        if guard is None or not compared or self.one_by_one:
            return
        self._guard, self._compared = None, []
        if not any(compared):
            raise BatchLayoutError(
                f"the denoiser runs batches that are no multiple of {guard.populations or 1} populations x "
                f"{guard.particles} rows"
            )

    @property
    def records(self) -> tuple[Recorded, ...]:
        """The calls of this step, if they are recorded."""
        return tuple(self._calls)

    # --- what the calls tell ---------------------------------------------------------------------------------------

    def branches(self, model_output: Tensor) -> Branches:
        """The guidance branches of ``model_output`` (B, ...), what the scheduler's step was given.

        Raises:
            SteeringError: nothing was recorded, or guidance is not linear.
        """
        return fit_branches([record.output for record in self._calls], model_output).branches()

    def differentiable(self, sample: Tensor, model_output: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf copy of ``sample`` (B, ...) and ``model_output`` (B, ...) as a differentiable function of it.

        The denoiser runs again, in pieces of ``chunk_size`` rows; the graphs of all pieces are kept. While ``keep`` is
        set, a row that is a copy is a function of its original: gradients reach the originals.

        Raises:
            SteeringError: see :func:`~feynkac.steering.denoiser.gradient.differentiable_output`; or a feature cache is
                on, which a second call would spoil.
        """
        for record in self._calls:
            if has_caches(record.module):
                raise SteeringError(f"{type(record.module).__name__}: gradients need its feature cache switched off")
        return differentiable_output(self._calls, sample, model_output)

    # --- the calls -------------------------------------------------------------------------------------------------

    def _wrap(self, module: nn.Module) -> Callable[..., Any]:
        tapped = Tapped.of(module)
        if self.chunk_size is not None:
            refuse_caches(module)
        self._tapped.append(tapped)

        def called(*args: Any, **kwargs: Any) -> Any:
            return self._called(tapped, args, kwargs)

        vars(called)[MARK] = True
        return called

    def _called(self, tapped: Tapped, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cuts = self.chunk_size is not None or self.keep is not None
        call = Call(tapped.names, args, kwargs)
        if self.one_by_one or not (cuts or self.silent or self.record or self._guard):
            if not tapped.control:
                self.rows_evaluated += call.rows()
            return tapped.base(*args, **kwargs)
        if self._guard is not None:
            self._compared.append(self._guard.check(call))
        if self.silent:
            return zeros_for(tapped.module, call)
        if cuts and not tapped.checked:
            self._check(tapped)
        result = self._evaluate(tapped, call)
        if self.record and not tapped.control:
            again = lambda changed: self._evaluate(tapped, changed)  # noqa: E731
            self._calls.append(Recorded(tapped.module, call, first_tensor(result).detach(), again))
        return result

    def _evaluate(self, tapped: Tapped, call: Call) -> Any:
        rows = call.rows()
        plan = plan_for(call, rows, self._block, chunk_size=self.chunk_size, keep=self.keep, pads=tapped.pads)
        if not tapped.control:
            self.rows_evaluated += rows if plan is None else plan.evaluated
        return tapped.base(*call.args, **call.kwargs) if plan is None else evaluate(tapped.base, call, rows, plan)

    def _check(self, tapped: Tapped) -> None:
        """Once a run: nothing may depend on which rows come together."""
        refuse_caches(tapped.module)
        if self._block is None and mixes_branches(tapped.module):
            raise SteeringError(
                f"{type(tapped.module).__name__} cuts its batch into guidance branches itself (perturbed-attention "
                "guidance): the number of rows must be known to cut it; give populations"
            )
        tapped.checked = True
