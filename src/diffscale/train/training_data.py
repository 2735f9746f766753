"""The data of a training, made ready: rows, latents, embeddings, validation prompts, and the batches of steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import network_digest
from diffscale._util.progress import Progress, silent
from diffscale.registry import plugins
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.train.base import Base
from diffscale.train.data import sources
from diffscale.train.data.batches import Batch, Batches, Order
from diffscale.train.data.dataset import Dataset
from diffscale.train.data.encodings import Embeddings, Framing, Latents, encode_dataset, encode_texts
from diffscale.train.data.hub import HubOptions
from diffscale.train.settings import TrainConfig
from diffscale.train.traits import Cropped, InnerEpochs

SHOWN: Final = 4
"""Prompts of the data that are sampled before and after, where no others are given."""


class PromptCache:
    """The embeddings of `prompts` for `pipelines`, kept in `folder`.

    `embeddings` is None where they cannot be kept, since prompts of other lengths have other shapes: then they are
    encoded anew for every batch. `args`: of the pipeline's call, as far as they decide embeddings. The
    `pipelines` are of one pipeline with the same arguments, and all get the same prompts.
    """

    def __init__(
        self,
        pipelines: Sequence[WindowedPipeline],
        prompts: Iterable[str],
        folder: Path,
        args: Mapping[str, Any],
        progress: Progress = silent,
    ) -> None:
        self._pipelines = pipelines
        self.embeddings: Embeddings | None = None
        prompts = list(dict.fromkeys(prompts))
        with torch.no_grad():
            try:
                pipelines[0].embed(["", max(prompts, key=len)])
            except DiffscaleError:
                return
        name = _encoders_name(pipelines[0], args)
        self.embeddings = encode_texts(prompts, pipelines[0].embed, name, folder, progress=progress)

    @torch.no_grad()
    def set_prompts(self, prompts: Sequence[str]) -> None:
        """Have rows point into `prompts`, all of which were given before."""
        embeddings = None if self.embeddings is None else self.embeddings.read(prompts)
        for pipeline in self._pipelines:
            if embeddings is None:
                pipeline.set_prompts(prompts, {})
            else:
                pipeline.set_embedded_prompts(prompts, embeddings)


def _encoders_name(pipeline: WindowedPipeline, args: Mapping[str, Any]) -> str:
    """A name that no other text encoders have, and none that are used in another way."""
    parts = dict(sorted(pipeline.components.items()))
    networks = {
        name: network_digest(part)
        for name, part in parts.items()
        if isinstance(part, nn.Module) and name not in pipeline.denoisers and name != "vae"
    }
    tokenizers = {
        name: f"{type(part).__name__} {len(part)}"
        for name, part in parts.items()
        if name.startswith("tokenizer") and part is not None
    }
    return f"{pipeline.class_name} {networks} {tokenizers} {sorted((k, repr(v)) for k, v in args.items())}"


@dataclass(frozen=True)
class TrainingData:
    """`batches` of the process; `own_prompts`: embeddings for the base's plain samplers."""

    base: Base
    dataset: Dataset
    batches: Batches
    validation_prompts: list[str]
    own_prompts: PromptCache

    def set_prompts(self, batch: Batch) -> None:
        """Have the policy's rows 0 to B - 1 be those of `batch`."""
        if batch.embeddings:
            sizes = None if batch.sizes is None else batch.sizes[:, 0]
            self.base.policy.set_embedded_prompts(batch.prompts, batch.embeddings, sizes)
        else:
            self.base.policy.set_prompts(batch.prompts)

    def set_own_prompts(self, prompts: Sequence[str]) -> None:
        """Have the rows of the base's plain samplers point into `prompts`."""
        self.own_prompts.set_prompts(prompts)
        self.base.sampler.prompts = self.base.own.prompts = list(prompts)

    def latents(self, batch: Batch) -> Tensor:
        """Clean latents float32 [B, pictures, ...], where the network is."""
        assert batch.latents is not None
        return batch.latents.to(self.base.policy.like.device)


def load_data(settings: TrainConfig) -> Dataset:
    """The rows that the method learns from; raises DiffscaleError if there are none."""
    source = settings.dataset_name or settings.train_data_dir or settings.train_prompts
    assert source is not None
    want = settings.learns_from
    there = Path(source).expanduser()
    if settings.train_prompts is not None:
        if want != "prompts":
            raise DiffscaleError(f"{settings.method} learns from {want}: give --train_data_dir or --dataset_name.")
        if not there.exists() and source not in plugins("suites"):
            raise DiffscaleError(f"There is no file {source}: give --train_prompts one of prompts.")
    if settings.train_data_dir is not None and not there.is_dir():
        raise DiffscaleError(f"There is no folder {source}: give --train_data_dir one with metadata.jsonl.")
    options = HubOptions(
        getattr(settings, "image_column", None),
        getattr(settings, "caption_column", None),
        config_name=settings.dataset_config_name,
        data_files=None if settings.data_files is None else tuple(settings.data_files),
        cache_dir=settings.cache_dir,
    )
    held_out, limit = settings.held_out_prompts, settings.max_train_samples
    return sources.load(source, want, options, held_out=held_out, limit=limit, seed=settings.seed)


def prepare(
    settings: TrainConfig, base: Base, dataset: Dataset, process: int, processes: int, progress: Progress = silent
) -> TrainingData:
    """Encode what is not encoded yet, and take the text encoders off the device; raises DiffscaleError as these do."""
    folder = Path(settings.cache_dir).expanduser() / "diffscale" if settings.cache_dir else sources.cache_folder()
    latents: Latents | None = None
    if isinstance(settings, Cropped):
        dataset, latents = _encode_pictures(settings, base, dataset, folder, progress)
    shown = settings.validation_prompt or list(dict.fromkeys(dataset.prompts))[:SHOWN]
    # Settings that guide the one and not the other may change what is encoded.
    unguided, guided = ({**base.call.args, "guided": each} for each in (False, True))
    prompts = PromptCache([base.policy.sampler.pipeline], [*dataset.prompts, ""], folder, unguided, progress)
    sampled = isinstance(settings, InnerEpochs) or getattr(settings, "refine_by", None) is not None
    own_prompts = [*shown, *dataset.prompts] if sampled else shown
    own = PromptCache([base.sampler.pipeline, base.own.pipeline], own_prompts, folder, guided, progress)
    if prompts.embeddings is not None and own.embeddings is not None:
        _move_text_encoders_off(base.pipe)
    order = Order(len(dataset), settings.train_batch_size, settings.seed, process, processes)
    batches = Batches(dataset, order, prompts.embeddings, latents, settings.proportion_empty_prompts)
    return TrainingData(base, dataset, batches, shown, own)


@torch.no_grad()
def _encode_pictures(
    settings: Cropped, base: Base, dataset: Dataset, folder: Path, progress: Progress
) -> tuple[Dataset, Latents]:
    like = base.policy.like
    height, width = base.policy.decode(like.new_zeros(1, *like.shape[1:])).shape[-2:]
    if height != width:
        raise DiffscaleError(f"{base.name} makes pictures of {width}x{height}: give --resolution, for square ones.")
    framing = Framing(height, settings.center_crop, settings.random_flip, settings.seed)
    vae = base.pipe.vae
    dtype = next(vae.parameters()).dtype
    # Some autoencoders overflow in half precision, and latents are kept.
    vae.to(torch.promote_types(dtype, torch.float32))
    try:
        name = f"{type(base.pipe).__name__} {network_digest(vae)}"
        return encode_dataset(dataset, base.policy.encode, name, framing, folder, progress=progress)
    finally:
        vae.to(dtype)


def _move_text_encoders_off(pipe: Any) -> None:
    """Move the text encoders to the CPU, unless the pipeline goes by them for where to run."""
    device = pipe._execution_device
    parts = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]
    for part in parts:
        part.to("cpu")
    if pipe._execution_device != device:
        for part in parts:
            part.to(device)
