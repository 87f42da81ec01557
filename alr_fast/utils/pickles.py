"""Reading pickles as plain data: nothing that a pickle names is imported or called.

`pickle.Unpickler`, even one that admits a few classes only, can be made to allocate any amount of
memory, or to compare nested parts for hours, by a file of a hundred bytes. Here time and memory are
proportional to the size of the file.
"""

import codecs
import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO, Any, NamedTuple

from alr_fast.utils.text import error_text

_LONGEST_NUMBER = 1 << 10  # bytes of an integer; converting long texts takes long
_LONGEST_LINE = 1 << 20
_NAMES = {op.code.encode("latin1"): op.name for op in pickletools.opcodes}
_MARK = object()


class Global(NamedTuple):
    """A class or function that a pickle names; it is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """What a pickle would make by calling something.

    Attributes:
        maker: What it would call.
        arguments: With these arguments.
        state: The state that the result would get, None if it has none.
    """

    maker: Global
    arguments: tuple[Any, ...]
    state: Any = None

    def fields(self) -> dict[str, Any]:
        """The attributes in the state of an instance without a state of another kind.

        Raises:
            UnpicklingError: The state is something else.
        """
        state = self.state
        if type(state) is tuple and len(state) == 2 and state[0] is None:  # of a class with slots
            state = state[1]
        if state is None:
            return {}
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise UnpicklingError(f"a {self.maker} with another state than attributes")
        return state


def load(file: IO[bytes], *, limit: int, known: Callable[[Global], bool]) -> Any:
    """The next pickle in a file, of any protocol.

    Strings of Python 2 are read as Latin-1. Parts that occur several times are one object, and
    lists may contain themselves: follow them at most once.

    Args:
        file: An open file.
        limit: Most bytes of the pickle.
        known: Whether a name may occur.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, set, `Global` or `Instance`. Keys of
        dicts and members of sets are None, numbers, texts, bytes or instances.

    Raises:
        UnpicklingError: The pickle is damaged, larger, or contains other things.
        OSError: The file cannot be read.
    """
    try:
        return _Machine(file, limit, known).run()
    except ValueError as error:  # of numbers and texts that are none
        raise UnpicklingError(error_text(error)) from error


class _Machine:
    """The stack machine that a pickle is a program of."""

    def __init__(self, file: IO[bytes], limit: int, known: Callable[[Global], bool]) -> None:
        self._file, self._left, self._known = file, limit, known
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        stack, steps = self._stack, _STEPS
        while True:
            code = self._take(1)
            if code == pickle.STOP:
                result = self._pop()
                if stack:
                    raise UnpicklingError("it ends too early")
                return result
            step = steps.get(code)
            if step is None:
                raise UnpicklingError(
                    "it contains torch tensors"
                    if code in (pickle.PERSID, pickle.BINPERSID)
                    else f"it contains {_NAMES.get(code, code)}"
                )
            step(self)

    # Reading

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise UnpicklingError("it is cut off, or too large")
        self._left -= count
        data = self._file.read(count)
        if len(data) < count:
            raise UnpicklingError("it is cut off")
        return data

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _sized(self, layout: str) -> bytes:
        count = self._number(layout)
        if count < 0:
            raise UnpicklingError("a negative size")
        return self._take(count)

    def _line(self) -> bytes:
        line = self._file.readline(min(self._left, _LONGEST_LINE))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise UnpicklingError("it is cut off")
        return line[:-1]

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, kind: type | None = None) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise UnpicklingError("a value is missing")
        value = self._stack.pop()
        if kind is not None and type(value) is not kind:
            raise UnpicklingError(f"a {type(value).__name__} in place of a {kind.__name__}")
        return value

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise UnpicklingError(f"a {kind.__name__} is missing")
        return self._stack[-1]

    def _marked(self) -> list[Any]:
        """Removes the values above the last mark, and the mark."""
        values: list[Any] = []
        while True:
            if not self._stack:
                raise UnpicklingError("a mark is missing")
            value = self._stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)

    # The steps

    def _put(self, place: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise UnpicklingError("a value is missing")
        self._memo[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise UnpicklingError("it refers to nothing")
        self._push(self._memo[place])

    def _add_items(self, target: dict[Any, Any], flat: list[Any]) -> None:
        if len(flat) % 2:
            raise UnpicklingError("a key without a value")
        target.update(zip(map(_key, flat[::2]), flat[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_key(key)] = value

    def set_items(self) -> None:
        flat = self._marked()
        self._add_items(self._top(dict), flat)

    def make_dict(self) -> None:
        made: dict[Any, Any] = {}
        self._add_items(made, self._marked())
        self._push(made)

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def append_all(self) -> None:
        values = self._marked()
        self._top(list).extend(values)

    def add_all(self) -> None:
        values = self._marked()
        self._top(set).update(map(_key, values))

    def last(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(values[::-1]))

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnpicklingError("a name that is no text")
        found = Global(module, name)
        if not self._known(found):
            raise UnpicklingError(f"it asks for {found}")
        self._push(found)

    def name_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self.name(module, name)

    def make(self) -> None:
        arguments, maker = self._pop(tuple), self._pop(Global)
        self._push(Instance(maker, arguments))

    def build(self) -> None:
        state = self._pop()
        self._top(Instance).state = state

    def integer_line(self) -> None:
        line = self._line()
        flag = {b"00": False, b"01": True}.get(line)
        self._push(_integer(line) if flag is None else flag)

    def string_line(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise UnpicklingError("a text without quotes")
        self._push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))


def _key(value: Any) -> Any:
    """A key of a dict. The hash of nested tuples would take exponential time."""
    if value is None or type(value) in (bool, int, float, str, bytes, Instance, Global):
        return value
    raise UnpicklingError(f"a {type(value).__name__} as a key")


def _integer(text: bytes) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise UnpicklingError("a number of too many digits")
    return int(text.decode("ascii"))


def _long(data: bytes) -> int:
    if len(data) > _LONGEST_NUMBER:
        raise UnpicklingError("a number of too many digits")
    return int.from_bytes(data, "little", signed=True)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: lambda m: m._take(1),
    pickle.FRAME: lambda m: m._take(8),
    pickle.MARK: lambda m: m._push(_MARK),
    pickle.POP: lambda m: m._pop(),
    pickle.POP_MARK: lambda m: m._marked(),
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.BININT: lambda m: m._push(m._number("<i")),
    pickle.BININT1: lambda m: m._push(m._take(1)[0]),
    pickle.BININT2: lambda m: m._push(m._number("<H")),
    pickle.INT: lambda m: m.integer_line(),
    pickle.LONG: lambda m: m._push(_integer(m._line().rstrip(b"L"))),
    pickle.LONG1: lambda m: m._push(_long(m._sized("<B"))),
    pickle.LONG4: lambda m: m._push(_long(m._sized("<i"))),
    pickle.FLOAT: lambda m: m._push(float(m._line())),
    pickle.BINFLOAT: lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    pickle.STRING: lambda m: m.string_line(),
    pickle.UNICODE: lambda m: m._push(m._line().decode("raw-unicode-escape")),
    pickle.SHORT_BINSTRING: lambda m: m._push(m._sized("<B").decode("latin1")),
    pickle.BINSTRING: lambda m: m._push(m._sized("<i").decode("latin1")),
    pickle.SHORT_BINUNICODE: lambda m: m._push(_text(m._sized("<B"))),
    pickle.BINUNICODE: lambda m: m._push(_text(m._sized("<I"))),
    pickle.BINUNICODE8: lambda m: m._push(_text(m._sized("<Q"))),
    pickle.SHORT_BINBYTES: lambda m: m._push(m._sized("<B")),
    pickle.BINBYTES: lambda m: m._push(m._sized("<I")),
    pickle.BINBYTES8: lambda m: m._push(m._sized("<Q")),
    pickle.BYTEARRAY8: lambda m: m._push(m._sized("<Q")),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.EMPTY_SET: lambda m: m._push(set()),
    pickle.LIST: lambda m: m._push(m._marked()),
    pickle.TUPLE: lambda m: m._push(tuple(m._marked())),
    pickle.TUPLE1: lambda m: m.last(1),
    pickle.TUPLE2: lambda m: m.last(2),
    pickle.TUPLE3: lambda m: m.last(3),
    pickle.DICT: lambda m: m.make_dict(),
    pickle.APPEND: lambda m: m.append(),
    pickle.APPENDS: lambda m: m.append_all(),
    pickle.SETITEM: lambda m: m.set_item(),
    pickle.SETITEMS: lambda m: m.set_items(),
    pickle.ADDITEMS: lambda m: m.add_all(),
    pickle.GLOBAL: lambda m: m.name(_text(m._line()), _text(m._line())),
    pickle.STACK_GLOBAL: lambda m: m.name_on_stack(),
    pickle.REDUCE: lambda m: m.make(),
    pickle.NEWOBJ: lambda m: m.make(),
    pickle.BUILD: lambda m: m.build(),
    pickle.PUT: lambda m: m._put(_integer(m._line())),
    pickle.BINPUT: lambda m: m._put(m._take(1)[0]),
    pickle.LONG_BINPUT: lambda m: m._put(m._number("<I")),
    pickle.MEMOIZE: lambda m: m._put(len(m._memo)),
    pickle.GET: lambda m: m._get(_integer(m._line())),
    pickle.BINGET: lambda m: m._get(m._take(1)[0]),
    pickle.LONG_BINGET: lambda m: m._get(m._number("<I")),
}
