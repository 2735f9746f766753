"""The settings of `diffscale bench`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from diffscale.bench.settings import ModelConfig


class BenchConfig(ModelConfig):
    """Everything that decides the results of a bench, and on which hardware it runs."""

    suite: str = Field("shapes-mini", description="suite by name, or a file of prompts")
    search: list[str] = Field(default_factory=lambda: ["random"], min_length=1)
    verifier: list[str] = Field(default_factory=lambda: ["clip"], min_length=1)
    budget: list[int] = Field(default_factory=lambda: [1280], min_length=1, description="NFE a prompt")
    repeats: int = Field(1, gt=0)
    limit: int | None = Field(None, gt=0, description="prompts, evenly over the suite")
    seed: int = 0

    def shared(self) -> dict[str, Any]:
        """What all results in one folder have in common; searches, verifiers, budgets, prompts may be added to it."""
        shared = self.model_dump(include={"model", "seed", "steps"})
        return {**shared, "pipe_args": self.call_args, **self.decisive()}
