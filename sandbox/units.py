"""Units of measure and the way from one to another.

Owns the table. Does not know tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dimension = Literal["length", "mass", "volume", "temperature", "speed", "time", "digital size"]


@dataclass(frozen=True, slots=True)
class Unit:
    """`value * factor + offset` is the value in the base unit of the dimension."""

    name: str
    dimension: Dimension
    factor: float
    offset: float = 0.0


class BadUnit(ValueError):
    """No such unit, or two that do not measure the same."""


# International yard and pound (1959), US liquid gallon, SI and IEC prefixes.
_UNITS: tuple[tuple[Unit, str], ...] = (
    (Unit("kilometres", "length", 1_000), "km kilometre kilometer"),
    (Unit("metres", "length", 1), "m metre meter"),
    (Unit("centimetres", "length", 0.01), "cm centimetre centimeter"),
    (Unit("millimetres", "length", 0.001), "mm millimetre millimeter"),
    (Unit("miles", "length", 1_609.344), "mi mile"),
    (Unit("yards", "length", 0.9144), "yd yard"),
    (Unit("feet", "length", 0.3048), "ft foot feet"),
    (Unit("inches", "length", 0.0254), "inch inches"),
    (Unit("kilograms", "mass", 1), "kg kilo kilogram kilogramme"),
    (Unit("grams", "mass", 0.001), "g gram gramme"),
    (Unit("pounds", "mass", 0.45359237), "lb lbs pound"),
    (Unit("ounces", "mass", 0.028349523125), "oz ounce"),
    (Unit("litres", "volume", 1), "l litre liter"),
    (Unit("millilitres", "volume", 0.001), "ml millilitre milliliter"),
    (Unit("gallons", "volume", 3.785411784), "gal gallon"),
    (Unit("degrees Celsius", "temperature", 1, 273.15), "c celsius °c"),
    (Unit("degrees Fahrenheit", "temperature", 5 / 9, 273.15 - 32 * 5 / 9), "f fahrenheit °f"),
    (Unit("kelvin", "temperature", 1), "k kelvin"),
    (Unit("kilometres per hour", "speed", 1 / 3.6), "km/h kmh kph"),
    (Unit("miles per hour", "speed", 0.44704), "mph"),
    (Unit("metres per second", "speed", 1), "m/s"),
    (Unit("seconds", "time", 1), "s sec second"),
    (Unit("minutes", "time", 60), "min minute"),
    (Unit("hours", "time", 3_600), "h hour"),
    (Unit("days", "time", 86_400), "day"),
    (Unit("megabytes", "digital size", 1e6), "mb megabyte"),
    (Unit("gigabytes", "digital size", 1e9), "gb gigabyte"),
    (Unit("mebibytes", "digital size", 2**20), "mib mebibyte"),
    (Unit("gibibytes", "digital size", 2**30), "gib gibibyte"),
)
_BY_NAME = {name: unit for unit, names in _UNITS for name in names.split()}


def unit(name: str) -> Unit:
    """Return the unit that people call `name`, in singular, plural or short.

    Raises:
        BadUnit: there is none.
    """
    asked = name.strip().lower()
    found = _BY_NAME.get(asked) or _BY_NAME.get(asked.removesuffix("s"))
    if found is None:
        raise BadUnit(f"unknown unit {name!r}")
    return found


def convert(value: float, *, source: Unit, target: Unit) -> float:
    """Return `value` of `source` in `target`, to ten digits.

    Raises:
        BadUnit: they do not measure the same.
    """
    if source.dimension != target.dimension:
        raise BadUnit(f"{source.name} measure {source.dimension}, {target.name} measure {target.dimension}")
    converted = (value * source.factor + source.offset - target.offset) / target.factor
    return float(f"{converted:.10g}")
