"""Arithmetic from text, and nothing more: no names, no calls but three, no numbers that fill the memory.

Owns the grammar and the caps. Does not know tools.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

Number = int | float

MAX_EXPRESSION_CHARS = 300
#: About 1,200 digits: more than anybody reads, less than CPython's limit for printing.
MAX_INTEGER_BITS = 4_096

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[[Number], Number]] = {"sqrt": math.sqrt, "abs": abs, "round": round}


class BadExpression(ValueError):
    """The text is no arithmetic, or its result no number that we give."""


def evaluate(expression: str) -> Number:
    """Return the value of `expression`; `^` is a power.

    Raises:
        BadExpression: says what is wrong.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise BadExpression(f"the expression is longer than {MAX_EXPRESSION_CHARS} characters")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError):
        raise BadExpression(f"not an arithmetic expression: {expression!r}") from None
    except ZeroDivisionError:
        raise BadExpression("division by zero") from None
    except (OverflowError, ValueError) as error:
        raise BadExpression(str(error)) from None
    # Rounds away the noise of binary fractions: 0.1 + 0.2 is 0.3 to the person who asks.
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _capped(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow):
                _refuse_huge_power(a, b)
            return _capped(_BINARY[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _capped(_FUNCTIONS[name](_value(argument)))
        case _:
            raise BadExpression(f"{type(node).__name__} is no arithmetic")


def _refuse_huge_power(base: Number, exponent: Number) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MAX_INTEGER_BITS:
        raise BadExpression("the result is too large")


def _capped(number: Number) -> Number:
    if isinstance(number, complex):
        raise BadExpression("the result is not a real number")
    if isinstance(number, float) and not math.isfinite(number):
        raise BadExpression("the result is too large")
    if isinstance(number, int) and number.bit_length() > MAX_INTEGER_BITS:
        raise BadExpression("the result is too large")
    return number
