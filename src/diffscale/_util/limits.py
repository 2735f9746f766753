"""How much a search may ask for at once, whatever its budget would pay for."""

from typing import Final

from diffscale._util.errors import DiffscaleError

MOST_ROWS: Final = 2**16
MOST_BYTES: Final = 2 * 2**30  # of latents; what is computed from them takes several times that


def most_rows(row_bytes: int) -> int:
    """How many rows of `row_bytes` a search may make at once."""
    return min(MOST_ROWS, MOST_BYTES // max(1, row_bytes))


def check_rows(rows: int, row_bytes: int = 0) -> None:
    """Raise DiffscaleError, before memory is asked for, if a search makes more `rows` of `row_bytes` than is sensible.

    The limits are the same on every machine, so that what runs on one runs on another.
    """
    most = most_rows(row_bytes)
    if rows > most:
        raise DiffscaleError(
            f"A search made {rows:,} rows at once, and {most:,} of this size are the most: set what it makes of them, "
            "such as n, k or m, or give it a smaller budget."
        )
