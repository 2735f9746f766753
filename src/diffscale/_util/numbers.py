"""Numbers as people read them."""


def rounded(value: float, digits: int = 3, sign: bool = False) -> str:
    """`value` with `digits` after the point; a small one, of which that would leave little, with as many that count."""
    kind = "f" if value == 0 or abs(value) >= 10.0 ** (1 - digits) else "g"
    return f"{value:{'+' if sign else ''}.{digits}{kind}}"
