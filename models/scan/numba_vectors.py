"""Vectors of 16 float32 lanes for the numba kernels, and the elementary functions on them.

LLVM's own vectoriser gives up on loops over many arrays, and calls into the C library would leave them scalar; here a
kernel says which lanes it computes, as it would with a compiler's vector types. LLVM maps 16 lanes to one AVX-512, two
AVX or four NEON or SSE registers. Arrays are flat; offsets count elements; `load` and `store` check no bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

config: Any = numba.config
LANES = 16
_FLOAT, _LONG = ir.FloatType(), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


def cache_folder() -> str:
    """Where compiled kernels are kept: a folder named after our sources.

    numba sees that a kernel's own file has changed, not that a function which it inlines from another file has.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("numba_*.py")):
        digest.update(source.read_bytes())
    return str(Path(config.CACHE_DIR or Path(__file__).parent / "__pycache__") / f"kernels-{digest.hexdigest()[:16]}")


def jit(function: Callable[..., Any]) -> Any:
    """numba.njit without the GIL, cached on disk; where no cache folder can be written, compiled in each process."""
    given, config.CACHE_DIR = config.CACHE_DIR, CACHE_FOLDER
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba found no writable folder, the user's own cache folder neither
        return numba.njit(nogil=True, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = given


CACHE_FOLDER = cache_folder()


class VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


VECTOR = VectorType()


@register_default(VectorType)
class VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, _FLOATS)


lowered: Any = intrinsic
"""A function that writes its own LLVM; untyped, as its declared arguments include the typing context."""


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _pointer(builder: ir.IRBuilder, address: Any, offset: Any, kind: ir.Type) -> Any:
    """Of the element at `offset` of an array of float32, or of int64 where `kind` is that."""
    element = _LONG if kind is _LONG else _FLOAT
    first = builder.inttoptr(address, element.as_pointer())
    return builder.bitcast(builder.gep(first, [offset]), kind.as_pointer())


@lowered
def load(typing_context: Any, address: Any, offset: Any) -> Any:
    """The 16 elements from `offset` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0], arguments[1], _FLOATS), align=4)

    return VECTOR(types.int64, types.int64), generate


@lowered
def store(typing_context: Any, address: Any, offset: Any, value: Any) -> Any:
    """Writes 16 elements from `offset` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        address, offset, value = arguments
        builder.store(value, _pointer(builder, address, offset, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, VECTOR), generate


@lowered
def put(typing_context: Any, address: Any, offset: Any, value: Any) -> Any:
    """Writes one element."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        address, offset, value = arguments
        builder.store(value, _pointer(builder, address, offset, _FLOAT))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


@lowered
def integer(typing_context: Any, address: Any, offset: Any) -> Any:
    """One element of an array of int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0], arguments[1], _LONG))

    return types.int64(types.int64, types.int64), generate


def _broadcast(builder: ir.IRBuilder, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(_INTS, [0] * LANES))


@lowered
def repeat(typing_context: Any, address: Any, offset: Any) -> Any:
    """One element in every lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _broadcast(builder, builder.load(_pointer(builder, arguments[0], arguments[1], _FLOAT)))

    return VECTOR(types.int64, types.int64), generate


@lowered
def spread(typing_context: Any, scalar: Any) -> Any:
    """The scalar in every lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _broadcast(builder, arguments[0])

    return VECTOR(types.float32), generate


@lowered
def total(typing_context: Any, vector: Any) -> Any:
    """The sum of the lanes, added in pairs."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector, width = arguments[0], LANES
        while width > 1:
            width //= 2
            mask = ir.Constant(_INTS, [(lane + width) % LANES for lane in range(LANES)])
            vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, mask))
        return builder.extract_element(vector, ir.IntType(32)(0))

    return types.float32(VECTOR), generate


def _operation(name: str, arity: int, emit: Callable[..., Any]) -> Any:
    """A lane-by-lane operation of `arity` vectors; `emit` writes its instructions."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return emit(builder, *arguments)

    signature = VECTOR(*[VECTOR] * arity)
    typed: dict[int, Callable[..., Any]] = {
        1: lambda typing_context, a: (signature, generate),
        2: lambda typing_context, a, b: (signature, generate),
        3: lambda typing_context, a, b, c: (signature, generate),
    }
    typed[arity].__name__ = name
    return lowered(typed[arity])


def _fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


def _exp2(builder: ir.IRBuilder, x: Any) -> Any:
    for bound, comparison in ((-126.0, "<"), (126.0, ">")):
        beyond = builder.fcmp_ordered(comparison, x, _constant(bound))
        x = builder.select(beyond, _constant(bound), x)
    shifted = builder.fadd(x, _constant(12582912.0))
    f = builder.fsub(x, builder.fsub(shifted, _constant(12582912.0)))
    p = _constant(EXP2[0])
    for coefficient in EXP2[1:]:
        p = _fma(builder, p, f, _constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTS), exponent), _FLOATS)


def _decaying(builder: ir.IRBuilder, x: Any) -> tuple[Any, Any]:
    """x < 0, and exp(-|x|), which softplus and sigmoid of the same x share."""
    negative = builder.fcmp_ordered("<", x, _constant(0.0))
    size = builder.select(negative, x, builder.fneg(x))
    return negative, _exp2(builder, builder.fmul(size, _constant(LOG2E)))


def _softplus(builder: ir.IRBuilder, x: Any) -> Any:
    negative, e = _decaying(builder, x)
    p = _constant(LOG1P[0])
    for coefficient in LOG1P[1:]:
        p = _fma(builder, p, e, _constant(coefficient))
    return _fma(builder, p, e, builder.select(negative, _constant(0.0), x))


def _sigmoid(builder: ir.IRBuilder, x: Any) -> Any:
    negative, e = _decaying(builder, x)
    return builder.fdiv(builder.select(negative, e, _constant(1.0)), builder.fadd(e, _constant(1.0)))


LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
EXP2 = (
    0.0013264727322670655,
    0.009671512752231297,
    0.05550733743977992,
    0.24022242083656703,
    0.6931469775981338,
    1.0,
)
"""Minimax polynomial of 2^f on [-1/2, 1/2] among those exact at 0, highest power first: relative error 9.2e-8."""
LOG1P = (
    0.0053648228078686825,
    -0.030065787148623964,
    0.07920452876747865,
    -0.13753801899579352,
    0.19153654797103623,
    -0.2485716364798973,
    0.33321322617693616,
    -0.49999647963555593,
    1.0,
)
"""Minimax polynomial of log(1 + e) / e on [0, 1] among those exact at 0: relative error 3.3e-8."""

add = _operation("add", 2, lambda builder, a, b: builder.fadd(a, b))
sub = _operation("sub", 2, lambda builder, a, b: builder.fsub(a, b))
mul = _operation("mul", 2, lambda builder, a, b: builder.fmul(a, b))
fma = _operation("fma", 3, _fma)
exp2 = _operation("exp2", 1, _exp2)
"""2^x, x clamped to [-126, 126], within 2e-7: adding 1.5 * 2^23 leaves the nearest integer in the low bits."""
sigmoid = _operation("sigmoid", 1, _sigmoid)
softplus = _operation("softplus", 1, _softplus)
"""log(1 + e^x) = max(x, 0) + log1p(exp(-|x|)), which keeps its relative precision where it is tiny."""
