"""The settings of `diffscale generate`, `bench`, `evaluate` and `reproduce`, as flags and as a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, field_validator

from diffscale._util import config
from diffscale._util.config import Flag
from diffscale._util.errors import check_name
from diffscale.models.options import DEVICES, MEANS, LoadOptions
from diffscale.registry import DEFAULT_MODEL, DEFAULT_SEARCH, DEFAULT_SUITE, plugins

if TYPE_CHECKING:
    from diffscale.models.drafting import DraftOptions

SearchText = Annotated[str, AfterValidator(lambda text: plugins("searches").short(text))]
VerifierText = Annotated[str, AfterValidator(lambda text: plugins("verifiers").short(text))]
"""A search and a verifier as users type them; `package/name` becomes the name that listings show."""
_WORDINGS: Final = (
    'For searches such as rewrites: a JSONL file with prompt and wordings, or "llm model=NAME". Default: those of the '
    "model's world."
)
_PRICE: Final = "a sample in 20 steps costs 20"
_CHOOSE: Final = "Verifier for the final choice among what the search finished. Default: the one searched with."


class ModelConfig(LoadOptions):
    """The model, how it is loaded, and how it is called."""

    model: str = Field(DEFAULT_MODEL, description="Shipped name, folder or Hub id.")
    seed: int = Field(0, description="Every noise follows from it.")
    steps: int | None = Field(
        None, gt=0, le=100_000, description="Denoising steps of a sample. Default: the model's own."
    )
    pipe_args: Annotated[dict[str, Any], Flag(("pipe-arg",))] = Field(
        default_factory=dict,
        description="name=value for the pipeline's own call, such as guidance_scale=3 or height=512; repeatable.",
    )
    negative_prompt: str | None = Field(None, description="What not to draw, by classifier-free guidance.")
    batch_size: int | None = Field(None, gt=0, description="Most pictures at once. Default: as many as fit.")
    draft_model: str | None = Field(
        None, description="For drafts via=model: a smaller or distilled model of the same latents, as --model."
    )
    draft_cache: str | None = Field(
        None, description="For drafts via=cache: taylorseer, magcache or pyramid_attention_broadcast, with arguments "
        'as "taylorseer cache_interval=5".',
    )  # fmt: skip
    draft_decoder: str | None = Field(
        None,
        description="For all drafts: an autoencoder in the place of the vae, such as a TAESD, by folder or Hub id.",
    )

    @property
    def drafting(self) -> DraftOptions:
        """The further ways of drafting."""
        # Imported late: diffusers takes seconds.
        from diffscale.models.drafting import DraftOptions

        return DraftOptions(self.draft_model, self.draft_cache, self.draft_decoder)

    @property
    def call_args(self) -> dict[str, Any]:
        """All arguments of the pipeline's call."""
        return self.pipe_args | ({} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt})


def check_names(searches: Iterable[str], verifiers: Iterable[str], allocation: str | None = None) -> None:
    """Raises DiffscaleError for searches and verifiers that are none, or have wrong arguments; loads no networks.

    And so for an allocation that is none, or that one of the searches cannot heed.
    """
    # Imported late: they import torch.
    from diffscale.engine.allocation import ALLOCATIONS, check_shareable
    from diffscale.registry.arguments import made
    from diffscale.searches import choose_search
    from diffscale.verifiers import check

    shared = made(allocation, "allocation", ALLOCATIONS) is not None
    for search in searches:
        chosen = choose_search(search)
        if shared:
            check_shareable(search, chosen.declares("anytime"))
    for verifier in verifiers:
        check(verifier)


class Workers(BaseModel):
    """By which workers searches are computed, which leaves their results as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: str | None = Field(
        None, description='Workers of Ray: "ray", "ray://host:port", a number, or "ray n=4 gpus=1 cpus=2"; n without a '
        "number is as many as there is room for. Default: the devices.",
    )  # fmt: skip
    verifier_workers: int = Field(
        0, ge=0, description="Workers more that only score, so that a slow verifier does not hold up the others."
    )


class GenerateConfig(ModelConfig, Workers):
    """Everything that decides the result of a run, and on which hardware it is made."""

    prompt: Annotated[str, Flag(argument="PROMPT")] = Field(
        "a red circle above a blue square", min_length=1,
        description="What to draw; of a class-conditional model a class, by name or id.",
    )  # fmt: skip
    search: SearchText = Field(DEFAULT_SEARCH, description='Search, as "auto" or "random n=8".')
    verifier: VerifierText = Field("clip", description='Verifier, as "clip" or "clip model=ID".')
    budget: int = Field(1280, gt=0, description=f"NFE (denoiser evaluations) in all; {_PRICE}.")
    choose: VerifierText | None = Field(None, description=_CHOOSE)
    wordings: str | None = Field(None, description=_WORDINGS)

    @property
    def verifiers(self) -> list[str]:
        """The one to search with, and the one to choose by if that is another."""
        return [self.verifier, *([] if self.choose is None else [self.choose])]

    def difference(self, before: GenerateConfig) -> str:
        """What makes the results differ, as `config.difference` writes it; empty if nothing does.

        Batch size, workers and what only takes memory and time do not.
        """
        passing = {"batch_size", "workers", "verifier_workers", *MEANS}
        return config.difference(*(each.model_dump(mode="json", exclude=passing) for each in (before, self)))


class BenchConfig(ModelConfig, Workers):
    """Everything that decides the results of a bench, and on which hardware it runs."""

    suite: Annotated[str, Flag(argument="SUITE|FILE")] = Field(
        DEFAULT_SUITE, description="Prompts: a suite, or a txt, jsonl or csv file."
    )
    search: list[SearchText] = Field([DEFAULT_SEARCH], min_length=1, description="Algorithm and arguments; repeatable.")
    verifier: list[VerifierText] = Field(["clip"], min_length=1, description="What to search with; repeatable.")
    budget: list[PositiveInt] = Field([1280], min_length=1, description=f"NFE a prompt, {_PRICE}; repeatable.")
    repeats: int = Field(1, gt=0, description="Searches a prompt, each from its own noise.")
    limit: int | None = Field(None, gt=0, description="Prompts, evenly over the suite. Default: all.")
    choose: VerifierText | None = Field(None, description=_CHOOSE)
    wordings: str | None = Field(None, description=_WORDINGS)
    allocation: str | None = Field(
        None, description='How all prompts share one budget, as "threshold score=.9". Default: each has its own.'
    )

    @property
    def verifiers(self) -> list[str]:
        """Those to search with, and the one to choose by if that is another."""
        return [*self.verifier, *([] if self.choose is None else [self.choose])]

    def shared(self) -> dict[str, Any]:
        """What all results in one folder have in common; searches, verifiers, budgets, prompts may be added to it."""
        shared = self.model_dump(include={"model", "seed", "steps"}) | {"pipe_args": self.call_args}
        given = self.model_dump(include={"choose", "draft_model", "draft_cache", "draft_decoder"}, exclude_none=True)
        return shared | given | self.decisive()


class Hardware(BaseModel):
    """Where networks run, and how much at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str | None = Field(None, description="cuda, mps or cpu. Default: the first of these there is.")
    batch_size: int | None = Field(None, gt=0, description="Most rows at once. Default: found by itself.")


class EvaluateConfig(Hardware):
    """What is evaluated, by what, and on which hardware."""

    folder: Annotated[Path, Flag(argument="FOLDER")] = Field(
        description="Pictures (png, jpg, webp), also in folders below."
    )
    metrics: Annotated[list[str], Flag(commas=True)] = Field(
        [], description="Of fid, fd_dino, precision, recall, cmmd, is, composition and any verifier, by commas."
    )
    reference: Path | None = Field(None, description="What to compare with: a folder, or a file of --save-reference.")
    features: str | None = Field(
        None, description="Extractor, as clip or clip:model=ID. Default: each metric's own, as published."
    )
    prompts: Path | None = Field(
        None, description="JSONL with file_name and text, a prompt a line, or the suite that the pictures are of. "
        "Default: metadata.jsonl or samples.jsonl.",
    )  # fmt: skip
    save_reference: Path | None = Field(
        None, description="Keep FOLDER's statistics in this safetensors file, for --reference."
    )


class ReproduceConfig(Hardware, Workers):
    """Which items of papers are reproduced, on which models and data, and on which hardware."""

    items: Annotated[list[str], Flag(argument="LIST|PLAN|ITEM...")] = Field(
        description="Items (A.table2, B.figure4), a paper (A), or all; planned: those that headlines are tested on, of "
        "which plan tells the tests, their power from the pilots in --output, and the hours."
    )
    device: str | None = Field(None, description=DEVICES)
    setting: str = Field("shapes", description="Models of shapes, or of the paper.")
    limit: int | None = Field(None, description="Prompts of each part, at most.")
    quick: bool = Field(False, description="Small sizes: each item within two minutes on 2 cores.")
    suites: Annotated[dict[str, str], Flag(("suite",))] = Field(
        default_factory=dict, description="name=file or Hub id of a suite that is not shipped, as "
        "drawbench=prompts.csv; repeatable.",
    )  # fmt: skip
    reference: str | None = Field(
        None, description="Statistics of real pictures, by `diffscale evaluate --save-reference`."
    )
    data: dict[str, str] = Field(
        default_factory=dict, description="id=folder, file or Hub id: train on that instead of what recipes name, as "
        "JourneyDB/JourneyDB=journeydb; repeatable.",
    )  # fmt: skip
    offload: Literal["model", "sequential"] | None = Field(
        None, description="Keep networks on the CPU: model or sequential."
    )

    @field_validator("setting")
    @classmethod
    def _known(cls, setting: str) -> str:
        check_name("setting", setting, ["shapes", "paper"])
        return setting
