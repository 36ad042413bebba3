"""Reads torch's pickles without ever unpickling: a small machine over the opcodes.

Python's unpickler imports and calls whatever a pickle names. This one has a table of the few
names that weights need (:mod:`blockzoo.formats.torch_globals`), each standing for a function of
ours, and refuses every other by name. It knows the opcodes that torch writes and no more, and
bounds how many there may be, so that a lying length or memo index takes no memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from blockzoo.errors import SourceError

#: a pickle of weights takes some 300 bytes and 50 opcodes a tensor; these allow about 100,000
MAX_PICKLE_BYTES = 64 << 20
_MAX_OPCODES = 5_000_000
_MAX_INT_KEY = 1 << 60  # larger ones can be chosen to collide in a dict
_TORN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, EOFError)


class Refused(Exception):
    """A pickle is malformed or unsafe; the message says why. The readers add the file's name."""


class Opaque:
    """Something in the pickle that is of no use for weights: its contents are dropped."""


class Function:
    """A name on the allow-list that may be called: with a tuple of arguments."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def read_pickle(
    data: memoryview,
    globals_: Mapping[str, Any],
    persistent: Callable[[Any], Any],
    *,
    limit: int = MAX_PICKLE_BYTES,
) -> tuple[Any, int]:
    """The value of the pickle at the start of some bytes, and how many bytes it takes.

    Parameters
    ----------
    data : memoryview
        Of bytes; what follows the pickle is ignored.
    globals_ : mapping of str to object
        What each allowed ``module.name`` stands for.
    persistent : callable
        Gives the object for a persistent id.
    limit : int
        The pickle's largest size, in bytes.

    Raises
    ------
    Refused
        Where it is malformed, too large, or names what is not in `globals_`.
    """
    stream = BytesIO(data[:limit])
    machine = _Machine(globals_, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                raise Refused(f"its pickle has more than {_MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
        return machine.result(), stream.tell()
    except _TORN as error:
        if len(data) > limit and stream.tell() == limit:
            raise Refused(f"its pickle has more than {limit} bytes") from error
        raise Refused(f"its pickle is malformed ({str(error)[:200]})") from error


class _Machine:
    """The stack, the marks and the memo, and what each opcode does to them."""

    def __init__(self, globals_: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self._globals = globals_
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise ValueError("it leaves more than one value")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _GETS:
            self._stack.append(self._memo[argument])
        elif name in _PUTS:
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
        elif name in _TUPLES:
            size = _TUPLES[name]
            items = tuple(self._stack[-size:])
            if len(items) != size:
                raise ValueError("the stack is empty")
            self._stack[-size:] = [items]
        elif name not in _IGNORED:
            action = _ACTIONS.get(name)
            if action is None:
                raise Refused(f"its pickle uses the opcode {name}, which weights do not need")
            action(self, argument)

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def _list(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._set(items)

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise ValueError("it appends to what is no list")

    def _set_item(self, _: Any) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # tuples may nest so that hashing them takes for ever
            if not isinstance(key, str | int | float | bytes | None):
                raise Refused(f"its pickle has a dict with a key of type {type(key).__name__}")
            if isinstance(key, int) and abs(key) >= _MAX_INT_KEY:
                raise Refused("its pickle has a dict with a key over 2⁶⁰")
            target[key] = value

    def _global(self, argument: Any) -> None:
        self._stack.append(self._find(*str(argument).split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names a global by what is no text")
        self._stack.append(self._find(module, name))

    def _find(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._globals:
            raise Refused(f"its pickle names {full[:200]}, which would run code")
        return self._globals[full]

    def _call(self, _: Any) -> None:
        arguments = self._stack.pop()
        function = self._stack.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        self._stack.append(function.call(*arguments))

    def _build(self, _: Any) -> None:
        # attributes, such as the versions that a state dict carries: no part of the weights
        self._stack.pop()
        if not self._stack:
            raise ValueError("it sets attributes of nothing")

    def _persistent_id(self, _: Any) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Opaque,
}
_GETS = frozenset(("BINGET", "LONG_BINGET"))
_PUTS = frozenset(("BINPUT", "LONG_BINPUT", "MEMOIZE"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "POP": _Machine._pop,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}


def refusal(path: Any, error: Refused) -> SourceError:
    """The error to show for a refused pickle in a file."""
    return SourceError(
        f"{path} is refused: {error}",
        hint="take the safetensors version of this checkpoint, or have somebody you trust "
        "convert it with save_pretrained",
    )
