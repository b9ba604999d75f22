"""Units of measure: which words are units, of what, and how large. A table and one function; called by quantity.py."""

import functools
import re
from fractions import Fraction

# dimension -> {names: how many of the dimension's first unit}
TABLE: dict[str, dict[str, str]] = {
    "length": {
        "m meter meters metre metres": "1",
        "km kilometer kilometers kilometre kilometres": "1000",
        "cm centimeter centimeters centimetre centimetres": "1/100",
        "dm decimeter decimeters": "1/10",
        "mm millimeter millimeters millimetre millimetres": "1/1000",
        "nm nanometer nanometers": "1/1000000000",
        "inch inches in": "0.0254",
        "foot feet ft": "0.3048",
        "yard yards yd yds": "0.9144",
        "mile miles mi": "1609.344",
    },
    "mass": {
        "g gram grams gm": "1",
        "kg kilogram kilograms kgs": "1000",
        "mg milligram milligrams": "1/1000",
        "ton tons tonne tonnes": "1000000",
        "pound pounds lb lbs": "453.59237",
        "ounce ounces oz": "28.349523125",
    },
    "time": {
        "s sec secs second seconds": "1",
        "min mins minute minutes": "60",
        "h hr hrs hour hours": "3600",
        "day days": "86400",
        "week weeks": "604800",
        "ms millisecond milliseconds": "1/1000",
        "year years yr yrs": "31557600",
        "month months": "2629800",
    },
    "volume": {
        "l liter liters litre litres": "1",
        "ml milliliter milliliters millilitre": "1/1000",
        "gallon gallons gal": "3.785411784",
        "quart quarts": "0.946352946",
        "cup cups": "0.2365882365",
    },
    "angle": {"degree degrees deg": "1", "radian radians rad rads": "radian"},
    "money": {"dollar dollars usd": "1", "cent cents": "1/100", "penny pennies": "1/100"},
    "temperature": {"celsius": "1", "fahrenheit": "fahrenheit"},
    "current": {"a amp amps ampere amperes": "1"},
    "force": {"n newton newtons": "1", "kn": "1000"},
    "energy": {"j joule joules": "1", "kj": "1000", "ev": "1.602176634e-19"},
    "power": {"w watt watts": "1", "kw": "1000"},
    "tension": {"v volt volts": "1"},
    "charge": {"c coulomb coulombs": "1"},
    "pressure": {"pa pascal pascals": "1"},
    "frequency": {"hz hertz": "1", "khz": "1000", "mhz": "1000000"},
    "amount": {"mol mole moles": "1"},
    "absolute temperature": {"k kelvin kelvins": "1"},
    "resistance": {"ohm ohms": "1"},
    "speed": {"mph": "0.44704", "kmh kmph kph": "5/18"},
    "count": {"unit units": "1"},
}

NAMES = {
    name: (dimension, size)
    for dimension, names in TABLE.items()
    for spelled, size in names.items()
    for name in spelled.split()
}
"""name -> (dimension, size); a size that is no number has a dimension of its own: radians are not degrees."""

POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}

Unit = tuple[Fraction, tuple[tuple[str, int], ...]]
"""Size, and each dimension's power."""


@functools.lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    r"""What a unit is ("km/h", "square cm", "cm^2", "feet per second"); None where a word is no unit of the table."""
    tokens = re.findall(r"[a-z]+|\^?-?\d+|[/^]", text.lower().replace("\\", "").replace("{", "").replace("}", ""))
    size, powers = Fraction(1), {}
    sign, power, last = 1, 1, ""
    for token in tokens:
        if token in ("per", "/", "a", "an") and last:
            sign = -1
        elif token in POWERS and token in ("squared", "cubed") and last:
            size, powers = _times(size, powers, last, sign * (POWERS[token] - 1))
        elif token in POWERS:
            power = POWERS[token]
        elif token.lstrip("^-").isdigit() and last:
            exponent = int(token.lstrip("^"))
            size, powers = _times(size, powers, last, sign * (exponent - 1))
        elif token in NAMES and (len(token) > 1 or len(text.strip()) <= 12):
            size, powers = _times(size, powers, token, sign * power)
            last, power = token, 1
        elif token not in ("of", "the", "^"):
            return None
    kept = tuple(sorted((dimension, count) for dimension, count in powers.items() if count))
    return (size, kept) if kept else None


def _times(size: Fraction, powers: dict[str, int], name: str, count: int) -> tuple[Fraction, dict[str, int]]:
    dimension, of_one = NAMES[name]
    if not re.match(r"\d", of_one):
        dimension, of_one = of_one, "1"
    if dimension == "volume":  # a liter is a cubic decimeter
        return size * (Fraction(of_one) / 1000) ** count, {**powers, "length": powers.get("length", 0) + 3 * count}
    if dimension == "speed":
        more = {"length": powers.get("length", 0) + count, "time": powers.get("time", 0) - count}
        return size * Fraction(of_one) ** count, {**powers, **more}
    return size * Fraction(of_one) ** count, {**powers, dimension: powers.get(dimension, 0) + count}
