"""What a training learns from, made ready: rows, latents, embeddings, prompts to look at, and the batches of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import network_digest
from diffscale.registry import plugins
from diffscale.train.base import Base
from diffscale.train.configs import TrainConfig
from diffscale.train.data import sources
from diffscale.train.data.batches import Batch, Batches
from diffscale.train.data.dataset import Dataset, Want
from diffscale.train.data.encodings import Latents, encode_dataset
from diffscale.train.data.framing import Framing
from diffscale.train.data.hub import HubOptions
from diffscale.train.data.order import Order
from diffscale.train.prompt_cache import Progress, Told

_WANTS: Final[dict[str, Want]] = {"sft": "pictures", "sharpen-sft": "pictures", "dpo": "pairs"}
LOOKED_AT: Final = 4
"""Prompts of the data that are sampled before and after, where no others are given."""


@dataclass(frozen=True)
class Materials:
    """`batches` of the process; `prompts` to look at. `own`: embeddings for the base's plain samplers."""

    base: Base
    dataset: Dataset
    batches: Batches
    prompts: list[str]
    own: Told

    def tell(self, batch: Batch) -> None:
        """From now on the policy's rows 0 to B - 1 are those of `batch`."""
        if batch.embeddings:
            sizes = None if batch.sizes is None else batch.sizes[:, 0]
            self.base.policy.tell_embedded(batch.prompts, batch.embeddings, sizes)
        else:
            self.base.policy.tell(batch.prompts)

    def tell_own(self, prompts: Sequence[str]) -> None:
        """From now on the rows of the base's plain samplers are of `prompts`."""
        self.own.tell(prompts)
        self.base.sampler.prompts = self.base.own.prompts = list(prompts)

    def latents(self, batch: Batch) -> Tensor:
        """Clean latents float32 [B, pictures, ...], where the network is."""
        assert batch.latents is not None
        return batch.latents.to(self.base.policy.like.device)


def load_data(settings: TrainConfig) -> Dataset:
    """The rows that the method learns from; raises DiffscaleError if there are none."""
    source = settings.dataset_name or settings.train_data_dir or settings.train_prompts
    assert source is not None
    want = _WANTS.get(settings.method, "prompts")
    if settings.train_prompts is not None and want != "prompts":
        raise DiffscaleError(f"{settings.method} learns from {want}: give --train_data_dir or --dataset_name.")
    if (
        settings.train_prompts is not None
        and not Path(source).expanduser().exists()
        and source not in plugins("suites")
    ):
        raise DiffscaleError(f"There is no file {source}: give --train_prompts one of prompts.")
    if settings.train_data_dir is not None and not Path(source).expanduser().is_dir():
        raise DiffscaleError(f"There is no folder {source}: give --train_data_dir one with metadata.jsonl.")
    options = HubOptions(
        settings.image_column,
        settings.caption_column,
        config_name=settings.dataset_config_name,
        data_files=None if settings.data_files is None else tuple(settings.data_files),
        cache_dir=settings.cache_dir,
    )
    return sources.load(
        source, want, options, held=settings.held_out_prompts, limit=settings.max_train_samples, seed=settings.seed
    )


def prepare(
    settings: TrainConfig,
    base: Base,
    dataset: Dataset,
    process: int,
    processes: int,
    progress: Progress | None = None,
) -> Materials:
    """Encode what is not encoded yet, and take the text encoders off the device; raises DiffscaleError as these do."""
    folder = Path(settings.cache_dir).expanduser() / "diffscale" if settings.cache_dir else sources.cache_folder()
    latents: Latents | None = None
    if dataset.pictures:
        dataset, latents = _latents(settings, base, dataset, folder, progress)
    looked_at = settings.validation_prompt or list(dict.fromkeys(dataset.prompts))[:LOOKED_AT]
    plain, guided = base.policy.sampler.pipeline, base.sampler.pipeline
    # Settings that guide the one and not the other may change what is encoded.
    told = Told(plain, [*dataset.prompts, ""], folder, {**base.call.args, "guided": False}, progress)
    sampled = settings.method == "sharpen-rlhf" or settings.refine_by is not None
    wanted = [*looked_at, *dataset.prompts] if sampled else looked_at
    own = Told(guided, wanted, folder, {**base.call.args, "guided": True}, progress, [base.own.pipeline])
    if told.embeddings is not None and own.embeddings is not None:
        _set_aside(base.pipe)
    order = Order(len(dataset), settings.train_batch_size, settings.seed, process, processes)
    batches = Batches(dataset, order, told.embeddings, latents, settings.proportion_empty_prompts)
    return Materials(base, dataset, batches, looked_at, own)


@torch.no_grad()
def _latents(
    settings: TrainConfig, base: Base, dataset: Dataset, folder: Path, progress: Progress | None
) -> tuple[Dataset, Latents]:
    like = base.policy.like
    height, width = base.policy.decode(like.new_zeros(1, *like.shape[1:])).shape[-2:]
    if height != width:
        raise DiffscaleError(f"{base.name} makes pictures of {width}x{height}: give --resolution, for square ones.")
    framing = Framing(height, settings.center_crop, settings.random_flip, settings.seed)
    told: Callable[[int, int], None] | None = None
    if progress is not None:
        told = lambda done, of: progress("pictures encoded", done, of)  # noqa: E731
    vae = base.pipe.vae
    with _precise(vae):
        name = f"{type(base.pipe).__name__} {network_digest(vae)}"
        return encode_dataset(dataset, base.policy.encode, name, framing, folder, told=told)


@contextmanager
def _precise(network: nn.Module) -> Iterator[None]:
    """Within it at least in float32: some autoencoders overflow in half precision, and latents are kept."""
    dtype = next(network.parameters()).dtype
    network.to(torch.promote_types(dtype, torch.float32))
    try:
        yield
    finally:
        network.to(dtype)


def _set_aside(pipe: Any) -> None:
    """Move the text encoders to the CPU, unless the pipeline goes by them for where to run."""
    device = pipe._execution_device
    if device.type == "cpu":
        return
    parts = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]
    for part in parts:
        part.to("cpu")
    if pipe._execution_device != device:
        for part in parts:
            part.to(device)
