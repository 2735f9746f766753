"""Errors say what to do."""

from diffscale._util.errors import DiffscaleError, unknown


def test_unknown_names_the_given_the_nearest_and_the_allowed():
    error = unknown("search", "zero_ordr", ["random", "zero_order"])
    assert isinstance(error, DiffscaleError)
    assert str(error) == ("Unknown search 'zero_ordr', did you mean 'zero_order'? Choose one of: random, zero_order.")
    assert "mean" not in str(unknown("search", "xyz", ["random"]))
