"""Reads what `torch.save` pickled as a description, and runs nothing: there is no code here that could call anything.

A pickle is a program for a stack machine that may call any function of Python. This machine knows the few instructions
that a saved state needs, makes plain containers and descriptions of tensors, and refuses the first name that is neither
a part of a tensor nor on the short list of things that trainers leave in their files. Opcodes: `pickletools` of the
standard library; what torch writes: `torch/_utils.py` (`_rebuild_tensor_v2`) and `torch/serialization.py`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

# What trainers leave beside the weights: settings and counters, which are read past. `webui.checkpoints.conversion`
# puts an inert class in each one's place, so none of them is ever imported.
_INERT_MODULES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_INERT_NAMES = frozenset(
    {
        "argparse.Namespace",
        "collections.defaultdict",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "torch.nn.modules.container.ParameterDict",
        "typing.Any",
    }
)
# Names that torch's own weights-only reader knows, beside those of tensors.
_TORCH_NAMES = frozenset(
    {"_codecs.encode", "builtins.bytearray", "builtins.complex", "collections.Counter", "torch.device"}
)

_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "IntStorage": "I32",
    "FloatStorage": "F32",
    "LongStorage": "I64",
    "DoubleStorage": "F64",
}
_DTYPES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}
_TABLE = "collections.OrderedDict"
_PARAMETERS = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
_TENSORS = frozenset(
    {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
)
_CONTAINERS = frozenset({"builtins.set", "builtins.frozenset", "torch.Size"})


class WouldRunCode(Exception):
    """The pickle asks for something that is no part of a state; the message is its name."""


class Damaged(Exception):
    """The pickle makes no sense; the message says where."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that the pickle names."""

    name: str


@dataclass(slots=True)
class Inert:
    """What something on the short list would have made: its arguments, and its state when it has one."""

    arguments: Any
    state: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers: the dtype as safetensors writes it, the key that names it in the file, how many there are."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that the file describes: a storage, and the dtype and shape it is seen in."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Machine:
    """The stack machine. Instructions raise IndexError, KeyError, TypeError or ValueError where a pickle is damaged."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def above_mark(self) -> list[Any]:
        """Takes what was pushed since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def named(self, name: str) -> None:
        """GLOBAL and STACK_GLOBAL: a name is looked at, never looked up."""
        name = name.replace("__builtin__.", "builtins.", 1).replace("copy_reg.", "copyreg.", 1)
        if not _is_known(name):
            raise WouldRunCode(name)
        self.names.add(name)
        self.stack.append(Name(name))

    def call(self) -> None:
        """REDUCE and NEWOBJ: what calling a known name would have made."""
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, Name):
            raise TypeError("it calls what is no function")
        self.stack.append(_made(function.name, arguments))

    def build(self) -> None:
        """BUILD: the state of something inert; that of a table or tensor says nothing we need."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def set_items(self, pairs: list[Any]) -> None:
        """SETITEM and SETITEMS."""
        target = self.stack[-1]
        if isinstance(target, Inert):  # a class derived from dict
            target.state = target.state if isinstance(target.state, dict) else {}
            target = target.state
        if not isinstance(target, dict):
            raise TypeError("it puts entries into what is no table")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Other keys, such as tuples, name no weight, and hashing one that is nested deeply may take for ever.
            if isinstance(key, (str, int, float, Name)):
                target[key] = value

    def append(self, items: list[Any]) -> None:
        """APPEND, APPENDS and ADDITEMS."""
        if not isinstance(self.stack[-1], list):
            raise TypeError("it appends to what is no list")
        self.stack[-1].extend(items)

    def storage(self) -> None:
        """BINPERSID: torch's ("storage", type, key, location, count, …)."""
        kind, type_name, key, _, count = self.stack.pop()[:5]
        if kind != "storage" or not isinstance(type_name, Name) or type(count) is not int or count < 0:
            raise ValueError("it describes a storage wrongly")
        if not isinstance(key, (str, int)):
            raise TypeError("it names a storage wrongly")
        self.stack.append(Storage(_STORAGES.get(type_name.name.rpartition(".")[2], "U8"), str(key), count))


def read_pickle(stream: BinaryIO) -> tuple[Any, frozenset[str]]:
    """The next pickle of `stream` as plain values, and all names in it.

    Tables are dicts, sets are lists, tensors and storages are `Tensor` and `Storage`. Raises `WouldRunCode` or
    `Damaged`, and nothing else. Memory stays in proportion to the bytes read; bound the stream.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop(), frozenset(machine.names)
            _step(machine, opcode.name, argument)
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(str(error)[:120]) from error
    raise Damaged("it has no end")


def _step(machine: _Machine, opcode: str, argument: Any) -> None:
    stack = machine.stack
    if opcode in _PUSH:
        stack.append(argument)
    elif opcode in _EMPTY:
        stack.append(_EMPTY[opcode]())
    elif opcode in _CONSTANTS:
        stack.append(_CONSTANTS[opcode])
    elif opcode in _TUPLES:
        start = len(stack) - _TUPLES[opcode]
        if start < 0:
            raise IndexError("it takes more than there is")
        stack[start:] = [tuple(stack[start:])]
    elif opcode in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(machine.memo[argument])
    elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
        machine.memo[argument] = stack[-1]
    elif opcode == "MEMOIZE":
        machine.memo[len(machine.memo)] = stack[-1]
    elif opcode not in ("PROTO", "FRAME"):
        _instruction(opcode)(machine, argument)


def _instruction(opcode: str) -> Callable[[_Machine, Any], None]:
    try:
        return _INSTRUCTIONS[opcode]
    except KeyError:
        raise ValueError(f"it uses the instruction {opcode}") from None


def _stack_global(machine: _Machine, _: Any) -> None:
    name = machine.stack.pop()
    module = machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("it names something wrongly")
    machine.named(f"{module}.{name}")


def _set_item(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.set_items([machine.stack.pop(), value])


_PUSH = frozenset(
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.above_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.above_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.above_mark()),
    "POP": lambda machine, _: machine.stack.pop() and None,
    "GLOBAL": lambda machine, argument: machine.named(argument.replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.above_mark()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.above_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.above_mark()),
    "BINPERSID": lambda machine, _: machine.storage(),
}


def is_inert(name: str) -> bool:
    """Whether `name` is one of the things that trainers leave in their files and that are read past."""
    return name in _INERT_NAMES or name.startswith(_INERT_MODULES)


def _is_known(name: str) -> bool:
    if name == _TABLE or name in _PARAMETERS | _TENSORS | _CONTAINERS | _TORCH_NAMES or is_inert(name):
        return True
    module, _, last = name.rpartition(".")
    if module == "torch":
        return last in _STORAGES or last in _DTYPES
    return module == "torch.storage" and last in ("UntypedStorage", *_STORAGES)


def _made(name: str, arguments: Any) -> Any:
    """What calling `name` with `arguments` would have made, as a description."""
    if name == _TABLE:
        pairs = arguments[0] if arguments else ()
        return {key: value for key, value in pairs if isinstance(key, (str, int, float, Name))}
    if name in _CONTAINERS:
        return list(arguments[0]) if arguments else []
    if name in _PARAMETERS:
        return arguments[0]
    if name in _TENSORS:
        return _tensor(arguments)
    return Inert(arguments)


def _tensor(arguments: Any) -> Tensor:
    """`_rebuild_tensor*`: (storage, offset, size, stride, requires_grad, hooks, dtype, …), the last two in v3."""
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("it describes a tensor without a storage")
    dtype = storage.dtype
    if len(arguments) > 6 and isinstance(arguments[6], Name):
        dtype = _DTYPES[arguments[6].name.rpartition(".")[2]]
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("it describes a tensor wrongly")
    return Tensor(storage, dtype, tuple(size))
