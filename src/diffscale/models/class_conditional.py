"""Class-conditional models: a network, its autoencoder and the names of its classes, from folders and publishers.

The folder of a SiT holds `config.json` (`model_type: sit` and the fields of `SiTConfig`), `model.safetensors` with the
names of the original repository, `vae/` as diffusers saves an AutoencoderKL, and `diffscale.json`:

    {"description": "...", "classes": "imagenet" | ["name of class 0", ...], "vae": "vae",
     "call": {"num_inference_steps": 25, "solver": "heun", "guidance_scale": 1.0}}

`vae`, if it is stated, is a path from the folder, so that models can share one. A DiT is a folder or Hub id that
diffusers' DiTPipeline loads.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DiTPipeline
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name, explained, unknown
from diffscale._util.files import checked, read_config, write_json
from diffscale.models.files import fetch, load_into, load_state, pretrained, save_network, saved_config
from diffscale.models.shipped import read_manifest
from diffscale.models.sit import SiT, SiTConfig, SiTDenoiser, config_of, dtype_of
from diffscale.samplers.class_conditional import Denoiser, class_sampler
from diffscale.samplers.denoiser import DenoiserSampler, Prediction
from diffscale.samplers.formulas import Marginal
from diffscale.samplers.levels import level_of, timestep_of
from diffscale.suites import imagenet
from diffscale.types import ClassLabel

ARGUMENTS: Final[dict[str, Any]] = {
    "guidance_scale": float,
    "solver": str,
    "eta": float | None,
    "guided_channels": int | None,
}
"""What a class-conditional model's call takes besides its steps, see `class_sampler`, and the types of it."""


@dataclass(frozen=True)
class ClassModel:
    """`names`: of the classes, by id. `synonyms`: other names of theirs.

    `steps`, `args`: how it is called where nothing else is said, in intervals and by `ARGUMENTS`. `name_or_path`: the
    folder it was loaded from, as of a pipeline. `device`: where the network runs, None for where its weights lie, which
    of an offloaded one is elsewhere.
    """

    denoiser: Denoiser
    vae: Any
    names: Sequence[str]
    steps: int
    args: Mapping[str, Any]
    synonyms: Mapping[str, int] = field(default_factory=dict)
    name_or_path: str = ""
    device: torch.device | None = None

    def label(self, asked: str) -> ClassLabel:
        """The class of that name (in any case) or id; raises DiffscaleError if there is none, or more than one.

        Of a ClassLabel the id counts.
        """
        text = str(asked.class_id) if isinstance(asked, ClassLabel) else asked.strip()
        count = len(self.names)
        if text.isdecimal():
            if int(text) >= count:
                raise DiffscaleError(f"The model has classes 0 to {count - 1}, not {text}.")
            return ClassLabel(self.names[int(text)], int(text))
        every = [*((name, number) for number, name in enumerate(self.names)), *self.synonyms.items()]
        found = sorted({number for name, number in every if name.lower() == text.lower()})
        if not found:
            advice = f"Give the name of a class, or its id from 0 to {count - 1}."
            raise unknown("class", asked, [name.lower() for name, _ in every], advice)
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise DiffscaleError(f"The name {asked!r} is that of classes {numbers}: give the id instead.")
        return ClassLabel(self.names[found[0]], found[0])

    def sampler(self, classes: Sequence[str], steps: int, args: Mapping[str, Any]) -> DenoiserSampler:
        """A sampler of `classes`, by names or ids, with `ARGUMENTS`; raises DiffscaleError for other or wrong ones."""
        for name, value in args.items():
            check_name("argument of a class-conditional model", name, ARGUMENTS)
            wanted = inspect.formatannotation(ARGUMENTS[name])
            with explained(f"A class-conditional model takes {name} as {wanted}, not {value!r}.", ValidationError):
                TypeAdapter(ARGUMENTS[name]).validate_python(value, strict=True)
        labels = [self.label(c) for c in classes]
        return class_sampler(self.denoiser, self.vae, labels, steps, device=self.device, **{**self.args, **args})


class SchedulerTable:
    """The NoiseSchedule of a variance preserving diffusers `scheduler`: its own timesteps, then 0.

    Raises DiffscaleError for a scheduler without a table of alphas.
    """

    process = "vp"

    def __init__(self, scheduler: Any) -> None:
        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise DiffscaleError(
                f"DiT needs a scheduler with a table of alphas, such as DDIMScheduler, not {type(scheduler).__name__}."
            )
        self._scheduler = scheduler

    def levels(self, steps: int) -> tuple[float, ...]:
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(steps)
        # Some schedulers evaluate a timestep twice.
        times = dict.fromkeys(scheduler.timesteps.tolist())
        return (*(level_of(self._scheduler.alphas_cumprod, time) for time in times), 0.0)

    def time(self, at: Marginal) -> float:
        return timestep_of(self._scheduler.alphas_cumprod, at)


_PREDICTIONS: Final[dict[str, Prediction]] = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}


class DiTDenoiser:
    """diffusers' DiTTransformer2DModel on the schedule of a diffusers `scheduler`, see `SchedulerTable`.

    Guidance acts on all channels, as in diffusers' DiTPipeline.
    """

    def __init__(self, network: Any, scheduler: Any) -> None:
        self.network, self.schedule = network, SchedulerTable(scheduler)
        config = network.config
        self.shape: tuple[int, ...] = config.in_channels, config.sample_size, config.sample_size
        self.guided = config.in_channels
        self.classes: int = config.num_embeds_ada_norm
        self.null: int | None = self.classes
        said = str(scheduler.config.prediction_type)
        check_name("prediction of a scheduler", said, _PREDICTIONS)
        self.prediction = _PREDICTIONS[said]

    def __call__(self, x: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        output = self.network(x.to(dtype_of(self.network)), timestep=times, class_labels=ids).sample
        return output[:, : self.shape[0]]


def class_model(pipe: Any) -> ClassModel | None:
    """The class-conditional model that `pipe` is, or that a DiTPipeline holds; None for anything else."""
    if isinstance(pipe, ClassModel):
        return pipe
    if not isinstance(pipe, DiTPipeline):
        return None
    denoiser = DiTDenoiser(pipe.transformer, pipe.scheduler)
    listed = {number: name for name, number in reversed(pipe.labels.items())}
    names = imagenet.names() if denoiser.classes == 1000 else [listed.get(i, str(i)) for i in range(denoiser.classes)]
    defaults = {"solver": "ddim", "guidance_scale": 4.0}
    where = str(pipe.name_or_path)
    return ClassModel(denoiser, pipe.vae, names, 50, defaults, pipe.labels, where, pipe._execution_device)


def is_sit(folder: str) -> bool:
    """Whether there is a SiT in `folder`, as this module writes it."""
    return (saved_config(folder) or {}).get("model_type") == "sit"


def load_sit(folder: str, device: str, dtype: torch.dtype) -> ClassModel:
    """The SiT in `folder`, see above; raises DiffscaleError for files that are missing or not as they should be."""
    where = Path(folder)
    given = {name: value for name, value in read_config(where / "config.json").items() if name != "model_type"}
    for name in given:
        check_name(f"field of {where / 'config.json'}", name, [f.name for f in fields(SiTConfig)])
    manifest = read_manifest(folder)
    weights = fetch(folder, "model.safetensors")
    network = _network(checked(SiTConfig, given, where / "config.json"), load_state(weights), weights)
    vae, classes = where / manifest.get("vae", "vae"), manifest.get("classes", "imagenet")
    return _class_model(network, vae, classes, device, dtype, folder)


def published_sit(
    model: str = "nyu-visionx/SiT-collections",
    file: str = "SiT-XL-2-256.pt",
    *,
    sha256: str,
    vae: str = "stabilityai/sd-vae-ft-ema",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClassModel:
    """A SiT as its authors publish it, a pickle of weights by name, and the autoencoder it was trained with.

    `model`: a Hub id or folder with `file` in it, or such a file itself, also SiT-XL-2-256x256.pt of the original
    repository. `sha256`: the digest that the file must have; the Hub shows it on the file's page. Raises DiffscaleError
    if it has another, or cannot be had. `save_sit` makes a folder of it, which every command takes for a model.
    """
    path = fetch(model, file)
    state = load_state(path, sha256)
    return _class_model(_network(config_of(state), state, path), vae, "imagenet", device, dtype)


def save_sit(
    model: ClassModel,
    folder: Path,
    description: str,
    classes: str | Sequence[str],
    call: Mapping[str, Any],
    vae: str | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder that `load_sit` reads, see above. `vae`: path from there to an autoencoder that is shared.

    `manifest`: further fields of diffscale.json.
    """
    network = model.denoiser.network
    assert isinstance(network, SiT)
    save_network(network, {"model_type": "sit", **asdict(network.config)}, folder)
    shared = {} if vae is None else {"vae": vae}
    stated = {"description": description, **(manifest or {}), "classes": classes, **shared, "call": dict(call)}
    write_json(folder / "diffscale.json", stated)
    if vae is None:
        model.vae.save_pretrained(folder / "vae")


def _network(config: SiTConfig, state: dict[str, Tensor], path: Path) -> SiT:
    with torch.device("meta"):
        network = SiT(config)
    load_into(network.to_empty(device="cpu"), state, path)
    return network


def _class_model(
    network: SiT, vae: str | Path, classes: str | Sequence[str], device: str, dtype: torch.dtype, folder: str = ""
) -> ClassModel:
    if isinstance(classes, str):
        check_name("classes", classes, ["imagenet"])
        classes = imagenet.names()
    if len(classes) != (count := network.config.num_classes):
        raise DiffscaleError(
            f"The network has {count} classes, but {len(classes)} names are stated: put the right list, or imagenet, "
            "in diffscale.json as `classes`."
        )
    autoencoder = pretrained(AutoencoderKL, vae, "autoencoder", use_safetensors=True).eval()
    # As paper A samples SiT (Ma et al. 2025, arXiv 2501.09732): 50 NFE of Heun, no guidance.
    defaults = {"solver": "heun", "guidance_scale": 1.0}
    denoiser = SiTDenoiser(network.to(device, dtype))
    return ClassModel(denoiser, autoencoder.to(device, dtype), classes, 25, defaults, name_or_path=folder)
