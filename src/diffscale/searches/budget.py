"""Refusing a search that could not finish a sample, before anything is paid."""

from diffscale._util.errors import BudgetTooSmall
from diffscale.types import Environment


def afford(env: Environment, nfe: int, what: str) -> None:
    """Raises BudgetTooSmall, naming `what`, if the budget does not pay for `nfe`."""
    if nfe > env.nfe_left:
        raise BudgetTooSmall(
            f"{what} costs {nfe} NFE and the budget is {env.nfe_left}: give at least that, or ask less."
        )
