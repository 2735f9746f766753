"""What a diffusers scheduler remembers between steps, found out by comparing, packed by rows and put back."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError


def copy_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with lists of their own, as steps put their outputs into lists."""
    return {name: list(v) if isinstance(v, list) else v for name, v in fields.items()}


def pack_memory(fields: Mapping[str, Any], fresh: Mapping[str, Any], rows: int, scheduler: str) -> dict[str, Tensor]:
    """The fields of a scheduler that differ from those it had before its first step, as entries of `State.solver`.

    Raises DiffscaleError for a field that cannot be split by the `rows` of the batch.
    """
    before = dict(_entries(fresh))
    changed = [(entry, value) for entry, value in _entries(fields) if not _same(value, before.get(entry))]
    return dict(_packed(entry, value, rows, scheduler) for entry, value in changed)


def _entries(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values; those of lists item by item, as "name.0"."""
    for name, value in sorted(fields.items()):
        if isinstance(value, list):
            yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
        else:
            yield name, value


def _same(value: Any, before: Any) -> bool:
    if value is None or value is before:
        return True
    if isinstance(value, Tensor):
        # Schedulers move their tables between devices; those are tables still.
        same_table = isinstance(before, Tensor) and value.shape == before.shape
        return same_table and torch.equal(value.cpu(), before.cpu())
    return isinstance(value, bool | int | float | str) and value == before


def _packed(entry: str, value: Any, rows: int, scheduler: str) -> tuple[str, Tensor]:
    """`value` as an entry of State.solver; "()" marks a scalar that was a tensor."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return f"{entry}()", value.cpu().expand(rows).clone()
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return entry, value
    if isinstance(value, bool | int | float):
        return entry, torch.full((rows,), value, dtype=torch.float64 if isinstance(value, float) else None)
    raise DiffscaleError(
        f"{scheduler} remembers {entry} ({type(value).__name__}) between steps, which cannot be "
        "split by rows; use another scheduler."
    )


def restore_memory(fields: dict[str, Any], solver: Mapping[str, Tensor]) -> None:
    """Put the entries of `pack_memory` back into `fields`."""
    for entry, packed in solver.items():
        name, _, i = entry.removesuffix("()").partition(".")
        value: Any = packed
        if packed.ndim == 1:
            value = packed[0] if entry.endswith("()") else packed[0].item()
        if i:
            fields[name] += [None] * (int(i) + 1 - len(fields[name]))
            fields[name][int(i)] = value
        else:
            fields[name] = value
