"""Launches that are prepared once: a kernel bound to all that Triton specialises on, then called with addresses.

Triton's own call tells the arguments apart anew each time. Here a short key does, and behind it stands the compiled
kernel with its launcher, as `JITFunction.run` calls it, or the C function that the launcher calls. That is no promise
of Triton's: each kernel's first launch goes Triton's way and is watched, and where it was not made as expected, so are
all others.

Needs torch alone until something is launched.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


class Repeated:
    """A launch that is made again and again with other addresses and numbers: what its launcher is called with.

    Whoever repeats it answers for the rest: that constants and dtypes are the same each time, and the same tensors
    None. What nobody can know beforehand is looked at here.
    """

    __slots__ = ("_before", "_call", "_compiled", "_constants", "_device", "_dtype", "_packs", "_prepared")

    def __init__(self, prepared: "Prepared", compiled: Any, arguments: dict[str, Any]) -> None:
        first, *_ = values = [*arguments.values()]
        self._prepared, self._device, self._dtype = prepared, first.get_device(), first.dtype
        self._compiled = compiled  # held, since the function is unloaded with it
        self._call, self._packs = compiled.run, False
        self._before: tuple[Any, ...] = (compiled.function, compiled.packed_metadata, None, None, None)
        parameters = zip(prepared.kernel.params, values, strict=True)
        self._constants = tuple(value for parameter, value in parameters if parameter.is_constexpr)

    def again(
        self, first: torch.Tensor, aligned: int, largest: float, grid: Sequence[int], values: Sequence[Any]
    ) -> bool:
        """Launch once more, on the current stream of the tensors' device, and return True; or do nothing, where Triton
        would launch something else, or do more than launch.

        Args:
            first: the first tensor.
            aligned: the addresses, or'ed, of what the kernel is specialised on the alignment of.
            largest: of the numbers that may need more than 32 bits.
            grid: its two sizes.
            values: addresses, 0 for None, and numbers, in the order of the kernel's parameters.
        """
        device, prepared = self._device, self._prepared
        hooks = prepared.hooks
        if (
            aligned % _ALIGNMENT
            or first.dtype is not self._dtype
            or first.get_device() != device
            or device != prepared.current_device()
            or largest > _INT32_MAX
            or getattr(hooks.launch_enter_hook, "calls", True)  # somebody wants to be told, as a profiler does
            or getattr(hooks.launch_exit_hook, "calls", True)
            or prepared.kernel.pre_run_hooks
        ):
            return False
        stream, every = prepared.stream(device), (*values, *self._constants)
        if self._packs:
            self._call(*grid, 1, stream, *self._before, every)
        else:
            self._call(*grid, 1, stream, *self._before, *every)
        return True

    def go_straight(self, seen: Sequence[Any], told: Sequence[Any], grid: Sequence[int], values: Sequence[Any]) -> None:
        """Leave out what Triton's launcher does in Python before it calls its C function, if all of that is known.

        Args:
            seen: what that function was called with for a launch.
            told: of it, what is there for whoever is told of launches; nobody is, or they are not repeated.
            grid, values: that launch's three sizes, and the values of all parameters.
        """
        launcher = self._compiled.run
        packs = isinstance(seen[-1], tuple)  # newer Tritons hand the values on as one
        end = -1 if packs else -len(values)
        before, given = seen[4:end], seen[-1] if packs else seen[end:]
        if (
            _are(seen[:3], grid)
            and _are(given, values)
            and _are(before[:1], self._before[:1])
            and all(getattr(launcher, f"{kind}_scratch_size", None) == 0 for kind in ("global", "profile"))
        ):
            self._before = tuple(None if any(each is one for one in told) else each for each in before)
            self._call, self._packs = launcher.launch, packs


def _are(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))


class _Unknown(Repeated):
    """What has not been launched yet, or is launched by Triton's own call alone."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def again(self, *args: Any) -> bool:
        return False


UNKNOWN: Repeated = _Unknown()


def repeat(launch: Any, grid: Sequence[int], values: Sequence[Any]) -> Repeated:
    """Make a `Launch`, and return what makes it again; UNKNOWN where Triton alone can.

    Args:
        grid, values: as `again` would be given them.
    """
    launch.run()
    prepared = _prepared.get(id(launch.kernel))
    if prepared is None:
        return UNKNOWN
    plain = [each.data_ptr() if isinstance(each, torch.Tensor) else each or 0 for each in launch.arguments.values()]
    assert (plain, (*launch.grid, 1)[:2]) == ([*values], grid), "this is another launch than the one to be repeated"
    return prepared.repeated(launch.arguments, launch.constants)


class Prepared:
    """One kernel, and what it has been bound to. Its parameters are pointers, then numbers, then constants; its grid
    has one or two sizes.

    Args:
        kernel: a `triton.JITFunction`. Integers among its numbers are not specialised.
    """

    def __init__(self, kernel: Any) -> None:
        from triton import knobs
        from triton.runtime import driver

        self.kernel, self.hooks = kernel, knobs.runtime
        self.current_device, self.stream = driver.active.get_current_device, driver.active.get_current_stream
        self._names = [parameter.name for parameter in kernel.params]
        self._pointers = sum(name.endswith("_ptr") for name in self._names)
        self._aligned = [
            place
            for place, parameter in enumerate(kernel.params[: self._pointers])
            if not parameter.do_not_specialize_on_alignment
        ]
        self._bound: dict[tuple[Any, ...], Repeated] = {}

    def launch(self, grid: tuple[int, ...], arguments: dict[str, Any], constants: Constants) -> None:
        """Launch on the current stream of the tensors' device."""
        first, *_ = values = [*arguments.values()]
        addresses, key = self._read(values, constants)
        numbers = values[self._pointers :]
        bound, largest = self._bound.get(key, UNKNOWN), max(numbers, default=0)
        if not bound.again(first, 0, largest, (*grid, 1)[:2], (*addresses, *numbers)):
            self._launch_by_triton(key, grid, arguments | constants.values, constants.options)

    def repeated(self, arguments: dict[str, Any], constants: Constants) -> Repeated:
        """Return what makes a launch again while all is aligned that is now; UNKNOWN where something is not."""
        _, key = self._read([*arguments.values()], constants)
        return self._bound.get(key, UNKNOWN) if key[2] == 0 else UNKNOWN

    def _read(self, values: list[Any], constants: Constants) -> tuple[list[int], tuple[Any, ...]]:
        """Return the tensors' addresses, and all that Triton tells apart beside them and numbers of 32 bits."""
        tensors = values[: self._pointers]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        bits = 0
        for place in self._aligned:
            bits |= addresses[place]
        alignment = bits % _ALIGNMENT and tuple(addresses[place] % _ALIGNMENT == 0 for place in self._aligned)
        dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        return addresses, (constants, tensors[0].get_device(), alignment, *dtypes)

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
                self._bound[key] = self._watch(grid, arguments, options) or UNKNOWN

    def _watch(self, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> "Repeated | None":
        """Launch as Triton does, and return what was called for it; None, which is said once, where that is not as it
        is known."""
        assert [*arguments] == self._names, "arguments are not in the order of the kernel's parameters"
        compiled = self.kernel.warmup(**arguments, grid=grid, **options)
        try:
            bound, launcher = Repeated(self, compiled, arguments), compiled.run
            is_known = compiled._run is launcher
        except AttributeError:
            is_known = False
        if not is_known:
            self.kernel[grid](**arguments, **options)
            _say_not_prepared()
            return None
        with _noting(compiled, "_run") as runs, _noting(launcher, "launch") as calls:
            self.kernel[grid](**arguments, **options)
        # What was noted is of this thread and perhaps of others.
        sizes, values, kernel = (*grid, 1, 1)[:3], [*arguments.values()], (compiled.function, compiled.packed_metadata)
        for args in runs:
            if _are(args[:3], sizes) and _are(args[4:6], kernel) and _are(args[9:], values):
                for seen in calls:
                    bound.go_straight(seen, args[6:9], sizes, values)
                return bound
        _say_not_prepared()
        return None


@contextlib.contextmanager
def _noting(owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """Note what a function is called with that is an attribute of `owner`; nothing where it has none such."""
    noted, function = list[tuple[Any, ...]](), getattr(owner, name, None)
    if function is None:
        yield noted
        return

    def noting(*args: Any) -> Any:
        noted.append(args)
        return function(*args)

    setattr(owner, name, noting)
    try:
        yield noted
    finally:
        setattr(owner, name, function)
