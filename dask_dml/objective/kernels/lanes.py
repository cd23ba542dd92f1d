"""Eight float64 numbers as one value of compiled code: they are added and multiplied side by side.

LLVM turns it into one, two or four registers, as the CPU has them, so that the order of a sum is
what is written and not what a CPU suggests. Nothing is contracted to fused operations.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import extending, types

# Its decorators are not typed.
_intrinsic: Any = extending.intrinsic
_register_model: Any = extending.register_model
_type_callable: Any = extending.type_callable
_lower_builtin: Any = extending.lower_builtin

LANES = 8

_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, LANES)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


_lanes = _Lanes()


@_register_model(_Lanes)
class _LanesModel(extending.models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _define(operation: Any, instruction: str) -> None:
    @_type_callable(operation)
    def type_of(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return _lanes if a == _lanes and b == _lanes else None

        return typer

    @_lower_builtin(operation, _Lanes, _Lanes)
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments)


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
):
    _define(_operation, _instruction)
    _define(getattr(operator, f"i{_operation.__name__}"), _instruction)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Where eight numbers of a C-ordered array begin, and their type."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


@_intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Eight numbers of an array in C order, from a place in it on; they need not be aligned."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        values = builder.load(pointer, align=1)
        is_wide = signature.args[0].dtype == types.float64
        return values if is_wide else builder.fpext(values, _VECTOR)

    return _lanes(array, types.int64), lower


@_intrinsic
def store(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Put eight numbers into a float64 array in C order."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset, values = arguments
        pointer = _pointer(context, builder, signature.args[0], array, offset)
        builder.store(values, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, _lanes), lower


@_intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """Have the cache line with a place of an array read meanwhile, if there is such a place."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        data = context.make_array(array_type)(context, builder, arguments[0]).data
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), (byte, number, number, number))
        )
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        # To read; to the second nearest cache, since the nearest is in use; data, not instructions.
        builder.call(function, [pointer, *(ir.Constant(number, k) for k in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), lower


@_intrinsic
def spread(typing: Any, value: Any) -> Any:
    """The same number eight times."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0])

    return _lanes(types.float64), lower


@_intrinsic
def spread_from(typing: Any, array: Any, offset: Any) -> Any:
    """The number at a place of a float64 array in C order, eight times."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        value = builder.load(builder.gep(data, [arguments[1]]))
        return _spread(builder, value)

    return _lanes(array, types.int64), lower


@_intrinsic
def first_of(typing: Any, values: Any, others: Any, count: Any) -> Any:
    """The first so many of some numbers, and then the others."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, others, count = arguments
        numbers = ir.VectorType(ir.IntType(64), LANES)
        places = ir.Constant(numbers, list(range(LANES)))
        counts = _spread(builder, count)
        return builder.select(builder.icmp_signed("<", places, counts), values, others)

    return _lanes(_lanes, _lanes, types.int64), lower


@_intrinsic
def smaller(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of each two numbers; of a NaN and a number, the second."""
    return _lanes(_lanes, _lanes), _chosen("<")


@_intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of each two numbers; of a NaN and a number, the second."""
    return _lanes(_lanes, _lanes), _chosen(">")


def _chosen(comparison: str) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

    return lower


@_intrinsic
def total(typing: Any, values: Any) -> Any:
    """Sum of eight numbers: of neighbours, then of neighbouring sums."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = arguments[0]
        while values.type.count > 1:
            half = values.type.count // 2
            even = builder.shuffle_vector(values, values, _mask(range(0, 2 * half, 2)))
            odd = builder.shuffle_vector(values, values, _mask(range(1, 2 * half, 2)))
            values = builder.fadd(even, odd)
        return builder.extract_element(values, ir.Constant(ir.IntType(32), 0))

    return types.float64(_lanes), lower


@_intrinsic
def totals(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The eight sums that `total` gives of each of eight values."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = list(arguments)
        width = 1
        # Sums of neighbours take turns: of two values in blocks of one, then of two, then of four.
        while len(values) > 1:
            values = [
                _added_neighbours(builder, values[k], values[k + 1], width)
                for k in range(0, len(values), 2)
            ]
            width *= 2
        return values[0]

    return _lanes(*[_lanes] * LANES), lower


def _added_neighbours(builder: Any, a: Any, b: Any, width: int) -> Any:
    left, right = [], []
    for start in range(0, LANES, 2 * width):
        left += [*range(start, start + width), *range(LANES + start, LANES + start + width)]
    right = [place + width for place in left]
    return builder.fadd(
        builder.shuffle_vector(a, b, _mask(left)), builder.shuffle_vector(a, b, _mask(right))
    )


def _spread(builder: Any, value: Any) -> Any:
    none = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, _mask([0] * LANES))


def _mask(places: Any) -> Any:
    chosen = list(places)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen)
