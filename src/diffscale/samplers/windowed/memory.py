"""What a diffusers scheduler remembers between steps, found out by comparing, packed by rows and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError


def copy_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with lists of their own, as steps put their outputs into lists."""
    return {name: list(v) if isinstance(v, list) else v for name, v in fields.items()}


def packed(fields: Mapping[str, Any], fresh: Mapping[str, Any], rows: int, scheduler: str) -> dict[str, Tensor]:
    """The fields of a scheduler that differ from those it had before its first step, as entries of `State.solver`.

    Raises DiffscaleError for a field that cannot be split by the `rows` of the batch.
    """
    memory: dict[str, Tensor] = {}
    for name in sorted(fields):
        now, before = fields[name], fresh.get(name)
        items = enumerate(now) if isinstance(now, list) else [(None, now)]
        for i, value in items:
            held = before if i is None else _at(before, i)
            if not _same(value, held):
                entry = name if i is None else f"{name}.{i}"
                memory |= _pack(entry, value, rows, scheduler)
    return memory


def _at(items: Any, i: int) -> Any:
    return items[i] if isinstance(items, list) and i < len(items) else None


def _same(value: Any, before: Any) -> bool:
    if value is None or value is before:
        return True
    if isinstance(value, Tensor):
        # Schedulers move their tables between devices; those are tables still.
        same_table = isinstance(before, Tensor) and value.shape == before.shape
        return same_table and torch.equal(value.cpu(), before.cpu())
    return isinstance(value, bool | int | float | str) and value == before


def _pack(entry: str, value: Any, rows: int, scheduler: str) -> dict[str, Tensor]:
    """`value` as an entry of State.solver; "()" marks a scalar that was a tensor."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return {f"{entry}()": value.cpu().expand(rows).clone()}
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return {entry: value}
    if isinstance(value, bool | int | float):
        dtype = torch.float64 if isinstance(value, float) else None
        return {entry: torch.full((rows,), value, dtype=dtype)}
    raise DiffscaleError(
        f"{scheduler} remembers {entry} ({type(value).__name__}) between steps, which cannot be "
        "split by rows; use another scheduler."
    )


def restore(fields: dict[str, Any], solver: Mapping[str, Tensor]) -> None:
    """Put the entries of `packed` back into `fields`."""
    for entry, packed in solver.items():
        name, _, i = entry.removesuffix("()").partition(".")
        value: Any = packed
        if packed.ndim == 1:
            value = packed[0] if entry.endswith("()") else packed[0].item()
        if not i:
            fields[name] = value
            continue
        items = fields[name]
        items += [None] * (int(i) + 1 - len(items))
        items[int(i)] = value
