"""Launches that are prepared once: a kernel bound to all that Triton specialises on, then called with addresses.

Triton's own call tells the arguments apart anew each time. Here a short key does, and behind it stands the compiled
kernel with its launcher, as `JITFunction.run` calls it. That is no promise of Triton's: each kernel's first launch goes
Triton's way and is watched, and where it was not made as expected, so are all others.

Needs torch alone until something is launched.
"""

import functools
import logging
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

_INT32_MAX = 2**31 - 1
_ALIGNMENT = 16
_prepared: dict[int, "Prepared"] = {}
_binding = threading.Lock()


@dataclass(frozen=True, eq=False)
class Constants:
    """What one kernel is compiled for. Made once for each kind of launch, and the same where it is one object."""

    values: dict[str, Any]
    """The parameters that are constants, in their order."""
    options: dict[str, Any]
    """Of the compiler."""


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], constants: Constants) -> None:
    """Launch a kernel with tensors and numbers in the order of its parameters; by Triton's own call where it is
    interpreted, or moves blocks by descriptors."""
    # What an owner compiles with a call of ours in it is traced, and has no addresses yet.
    prepared = None if torch.compiler.is_compiling() else _prepared.get(id(kernel)) or _prepare(kernel)
    if prepared is None:
        first = next(iter(arguments.values()))
        with torch.cuda.device_of(getattr(first, "base", first)):
            kernel[grid](**arguments, **constants.values, **constants.options)
    else:
        prepared.launch(grid, arguments, constants)


def _prepare(kernel: Any) -> "Prepared | None":
    from triton import JITFunction

    # Triton makes descriptors of tensors anew for each launch.
    if not isinstance(kernel, JITFunction) or any(name.endswith("_desc") for name in kernel.arg_names):
        return None
    return _prepared.setdefault(id(kernel), Prepared(kernel))


@functools.cache
def _say_not_prepared() -> None:
    logger.warning(
        "kernels are launched by Triton's own call, which takes the host three times as long: this Triton does not "
        "call its launchers as it is known to"
    )


class _Bound(NamedTuple):
    """What launches a compiled kernel."""

    run: Any
    function: Any
    metadata: Any
    constants: tuple[Any, ...]
    compiled: Any
    """Held, since the function is unloaded with it."""


class Prepared:
    """One kernel, and what it has been bound to. Its parameters are pointers, then numbers, then constants.

    Args:
        kernel: a `triton.JITFunction`. Integers among its numbers are not specialised.
    """

    def __init__(self, kernel: Any) -> None:
        from triton import knobs
        from triton.runtime import driver

        self.kernel, self._hooks = kernel, knobs.runtime
        self._current_device, self._stream = driver.active.get_current_device, driver.active.get_current_stream
        self._names = [parameter.name for parameter in kernel.params]
        self._pointers = sum(name.endswith("_ptr") for name in self._names)
        self._aligned = [
            place
            for place, parameter in enumerate(kernel.params[: self._pointers])
            if not parameter.do_not_specialize_on_alignment
        ]
        self._bound: dict[tuple[Any, ...], _Bound | None] = {}

    def launch(self, grid: tuple[int, ...], arguments: dict[str, Any], constants: Constants) -> None:
        """Launch on the current stream of the tensors' device."""
        values = [*arguments.values()]
        tensors, numbers = values[: self._pointers], values[self._pointers :]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        bits = 0
        for place in self._aligned:
            bits |= addresses[place]
        device, hooks = tensors[0].get_device(), self._hooks
        # All that Triton tells apart; numbers it does not, and those that do not fit are left to it below.
        key = (
            constants,
            device,
            bits % _ALIGNMENT and tuple(addresses[place] % _ALIGNMENT == 0 for place in self._aligned),
            *[None if tensor is None else tensor.dtype for tensor in tensors],
        )
        bound = self._bound.get(key)
        if (
            bound is None
            or device != self._current_device()
            or (numbers and max(numbers) > _INT32_MAX)
            or getattr(hooks.launch_enter_hook, "calls", True)  # somebody wants to be told, as a profiler does
            or getattr(hooks.launch_exit_hook, "calls", True)
            or self.kernel.pre_run_hooks
        ):
            self._launch_by_triton(key, grid, arguments | constants.values, constants.options)
            return
        run, function, metadata, constant, _ = bound
        x, y, z = (*grid, 1, 1)[:3]
        run(x, y, z, self._stream(device), function, metadata, None, None, None, *addresses, *numbers, *constant)

    def _launch_by_triton(
        self, key: tuple[Any, ...], grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """Launch as Triton does, and bind the kernel to `key` where that is possible and was not tried before."""
        first = next(iter(arguments.values()))
        with torch.cuda.device_of(first):  # does nothing for a tensor that is on no GPU
            if key in self._bound:
                self.kernel[grid](**arguments, **options)
                return
            with _binding:
                self._bound[key] = self._watch(grid, arguments, options)

    def _watch(self, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> _Bound | None:
        """Launch as Triton does, and return what was called for it; None, which is said once, where that is not as it
        is known."""
        assert [*arguments] == self._names, "arguments are not in the order of the kernel's parameters"
        compiled, seen = self.kernel.warmup(**arguments, grid=grid, **options), list[tuple[Any, ...]]()
        try:
            constants = tuple(v for p, v in zip(self.kernel.params, arguments.values(), strict=True) if p.is_constexpr)
            bound = _Bound(compiled.run, compiled.function, compiled.packed_metadata, constants, compiled)
            is_known = compiled._run is bound.run
        except AttributeError:
            is_known = False
        if not is_known:
            self.kernel[grid](**arguments, **options)
            _say_not_prepared()
            return None

        def watched(*args: Any) -> Any:
            seen.append(args)
            return bound.run(*args)

        compiled._run = watched
        try:
            self.kernel[grid](**arguments, **options)
        finally:
            compiled._run = bound.run
        any_stream, any_hooks = [None], [None] * 3
        expected = [
            *(*grid, 1, 1)[:3], *any_stream, bound.function, bound.metadata, *any_hooks, *arguments.values()
        ]  # fmt: skip
        for args in seen:  # of this thread and perhaps of others
            pairs = zip(args, expected, strict=False)
            if len(args) == len(expected) and all(want is None or got is want for got, want in pairs):
                return bound
        _say_not_prepared()
        return None
