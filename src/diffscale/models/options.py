"""What users may say about loading a model; `diffscale generate`, `bench` and `search` all take these."""

from typing import Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from diffscale._util.errors import DiffscaleError, check_name

MEANS: Final = frozenset({"device", "offload", "vae_slicing", "vae_tiling", "compile", "attention"})
"""Options that say where and how a model runs: they take memory and time, and leave the result as it is but for
rounding. A run may go on with others of these."""

ALL: Final = "cuda:all"
"""As a device: all of CUDA."""
DEVICES: Final = (
    "cuda, mps or cpu; searches run on several, as cuda:0,cuda:1 or cuda:all. Default: the first of these there is."
)
"""What users are told of a device."""

AUTO: Final = "auto"
DTYPES: Final = (AUTO, "float32", "bfloat16", "float16")


class LoadOptions(BaseModel):
    """How a model given by name is loaded. A pipeline that is loaded already is used as it is.

    Raises DiffscaleError for options that do not work together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    panel: ClassVar[str] = "Loading"

    device: str | None = Field(default=None, description=DEVICES)
    dtype: str = Field(
        default=AUTO,
        description="auto, float32, bfloat16 or float16. auto: on a GPU what the weights are published in, on a CPU "
        "bfloat16 if it multiplies it in hardware, else float32.",
    )
    variant: str | None = Field(default=None, description="Weight files of this variant, such as fp16.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub. Default: main.")
    allow_pickles: bool = Field(
        default=False,
        description="Read weights that are pickles, too, where there are no safetensors; those with code are refused.",
    )
    scheduler: str | None = Field(
        default=None, description='Class and arguments, as "DPMSolverMultistepScheduler use_karras_sigmas=true".'
    )
    lora: list[str] = Field(
        default_factory=list, description="Hub id, folder or safetensors file, with :weight if not 1; repeatable."
    )
    quantize: str | None = Field(
        default=None,
        description='bitsandbytes_4bit, bitsandbytes_8bit, torchao or quanto, as "torchao components=unet".',
    )
    offload: Literal["model", "sequential"] | None = Field(
        default=None,
        description="Keep networks on the CPU: model moves one at a time, sequential layer by layer (slow).",
    )
    vae_slicing: bool = Field(default=False, description="Decode one picture at a time.")
    vae_tiling: bool = Field(default=False, description="Decode in tiles; seams are blended.")
    compile: bool = Field(
        default=False, description="torch.compile the denoiser, by repeated blocks where it has them."
    )
    attention: str | None = Field(default=None, description="Attention backend of diffusers, such as flash or sage.")

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        check_name("dtype", dtype, DTYPES)
        return dtype

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.offload == "sequential" and (self.compile or self.quantize):
            other = "compile" if self.compile else "quantize"
            raise DiffscaleError(
                f"Sequential offload takes networks apart and does not go with {other}: choose offload model, or leave "
                f"{other} out."
            )
        return self

    def of_files(self) -> dict[str, Any]:
        """Which files are loaded, as `DiffusionPipeline.from_pretrained` is told."""
        # With None diffusers takes pickles where there are no safetensors.
        safe = None if self.allow_pickles else True
        return {"variant": self.variant, "revision": self.revision, "use_safetensors": safe}

    def asked(self) -> dict[str, Any]:
        """The options that are not at their default."""
        return {
            name: value
            for name, field in LoadOptions.model_fields.items()
            if (value := getattr(self, name)) != field.get_default(call_default_factory=True)
        }

    def used_dtype(self) -> str:
        """The dtype that weights are loaded in.

        Raises ValueError while that is `auto`, which is no dtype: see `models.load.settle_dtype`.
        """
        if self.dtype == AUTO:
            raise ValueError("the dtype is auto: settle_dtype says what that is")
        return self.dtype

    def decisive(self) -> dict[str, Any]:
        """What of the options makes a run the same run: all but `MEANS`, without those left at their default.

        So a journal from before an option existed is still one of the same run. The dtype is the one that is used, see
        `used_dtype`.
        """
        asked = {name: value for name, value in self.asked().items() if name not in MEANS}
        return asked | {"dtype": self.used_dtype()}
