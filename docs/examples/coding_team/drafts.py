"""What the coders know by heart, and what the architect wants to hold. A hasty draft comes first, as it does."""

from collections.abc import Sequence

CHECKS: dict[str, list[tuple[str, object]]] = {
    "to_roman.py": [("to_roman(4)", "IV"), ("to_roman(1994)", "MCMXCIV")],
    "from_roman.py": [
        ("from_roman('MMXXVI')", 2026),
        ("all(from_roman(to_roman(n)) == n for n in range(1, 4000))", True),
    ],
}

HASTY = {
    "to_roman.py": """\
SIGNS = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}


def to_roman(number):
    text = ""
    for sign, value in SIGNS.items():
        text += number // value * sign
        number %= value
    return text
""",
    "from_roman.py": '''\
VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}


def from_roman(text: str) -> int:
    """The number that a Roman numeral writes."""
    total = 0
    for sign, following in zip(text, text[1:] + "I"):
        total += -VALUES[sign] if VALUES[sign] < VALUES[following] else VALUES[sign]
    return total
''',
}

CAREFUL = {
    "to_roman.py": '''\
SIGNS = {"M": 1000, "CM": 900, "D": 500, "CD": 400, "C": 100, "XC": 90, "L": 50, "XL": 40, "X": 10}
SIGNS |= {"IX": 9, "V": 5, "IV": 4, "I": 1}


def to_roman(number: int) -> str:
    """A number from 1 to 3999 as a Roman numeral."""
    text = ""
    for sign, value in SIGNS.items():
        text += number // value * sign
        number %= value
    return text
''',
}


def draft_of(file: str, findings: Sequence[str]) -> str:
    """A hasty draft of a file, or a careful one for who was told what is wrong."""
    return CAREFUL.get(file, HASTY[file]) if findings else HASTY[file]
