"""Methods that sample first, and then take several steps on the moves of what was sampled."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.train.losses.on_policy import Moves
from diffscale.train.methods.method import Method, Stage
from diffscale.train.rewards import PooledReward

_FIELDS = ("x", "after", "time", "to", "rows", "log_prob")


class Rounds(Method):
    """A round samples some batches of prompts, and then takes a step on every `gradient_accumulation_steps` of them.

    A step goes through all moves of its samples, one of each sample at a time, in an order of each sample's own, as in
    the authors' code of DDPO (Black et al. 2024) and of D3PO (Yang et al. 2024): so a pass has as many rows as a batch.
    A checkpoint within a round holds what it sampled.
    """

    _held: dict[str, Tensor]
    _round: int | None = None

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        if isinstance(stage.reward, PooledReward):
            # Its scores say something within one choice alone, and samples of a round are for different prompts.
            raise DiffscaleError(
                f"{stage.settings.method} needs a number for each sample, and {stage.reward.name!r} compares: give its "
                "members one by one, each as a --reward."
            )

    @property
    def moves(self) -> int:
        """Of each sample."""
        return len(self.stage.policy.grid()) - 1

    @property
    def passes(self) -> int:
        return self.stage.settings.gradient_accumulation_steps * self.moves

    @property
    def batches(self) -> int:
        """That a round samples."""
        settings = self.stage.settings
        samples = settings.samples_per_round or 2 * settings.train_batch_size * settings.gradient_accumulation_steps
        return samples // settings.train_batch_size

    @abstractmethod
    def sampled(self, number: int) -> dict[str, Tensor]:
        """What batch `number` gives: tensors [B, ...] on the CPU, of moves [B, moves, ...]."""

    @abstractmethod
    def settled(self, held: dict[str, Tensor], captions: list[str]) -> dict[str, Tensor]:
        """What is known once all batches of a round are sampled: further tensors."""

    def gather(self, number: int) -> tuple[dict[str, Tensor], Tensor, bool]:
        """What is held of the pass's batch [B, ...], which move of each sample [B], and whether a round begins."""
        batch, move = divmod(number, self.moves)
        round_, place = divmod(batch, self.batches)
        fresh = round_ != self._round
        if fresh:
            numbers = range(round_ * self.batches, (round_ + 1) * self.batches)
            parts = [self.sampled(each) for each in numbers]
            held = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            captions = [caption for each in numbers for caption in self.stage.materials.batches.at(each).captions]
            self._held, self._round = held | self.settled(held, captions), round_
        self.stage.batch(batch)
        size = self.stage.settings.train_batch_size
        own = {name: tensor[place * size : (place + 1) * size] for name, tensor in self._held.items()}
        keys = self.stage.keys(batch, "moves")
        order = torch.stack([noise.uniform(noise.fold_rows(keys, i)) for i in range(self.moves)], 1).argsort(1)
        return own, order[:, move], fresh

    def at(self, held: dict[str, Tensor], move: Tensor, name: str = "") -> Moves:
        """Of each sample the move `move` [B], of the rollout called `name`; where the network is."""
        each, device = torch.arange(len(move)), self.stage.policy.like.device
        tensors = {field: held[f"{name}{field}"][each, move] for field in _FIELDS if field != "rows"}
        x, after, log_prob = (tensors[field].to(device) for field in ("x", "after", "log_prob"))
        return Moves(x, after, tensors["time"], tensors["to"], self.stage.rows, log_prob)

    def held(self, moves: Moves, name: str = "") -> dict[str, Tensor]:
        """The moves of a rollout of a batch by name, [B, moves, ...], to be kept."""
        return {
            f"{name}{field}": getattr(moves, field).unflatten(0, (-1, self.moves)).cpu()
            for field in _FIELDS
            if field != "rows"
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._round is None else {**self._held, "round": torch.tensor(self._round)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self._held = {name: tensor for name, tensor in state.items() if name != "round"}
            self._round = int(state["round"])
