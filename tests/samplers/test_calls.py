"""Videos: which frames stand for them, how these are scored, and what is shown."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffscale._util.errors import DiffscaleError
from diffscale.engine.scoring import frame_strip, safe_score
from diffscale.samplers.calls import overridden, pictures


class Red:
    """Scores a picture by its mean red; a frame that is all blue is not a number to it."""

    name = "red"

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert images.ndim == 4 and len(images) == len(prompts)
        assert prompts == sorted(prompts)  # the frames of a video have its prompt, next to each other
        scores = images[:, 0].mean((1, 2))
        return torch.where(images[:, 2].mean((1, 2)) == 1, torch.nan, scores)


def test_four_frames_stand_for_a_video_first_and_last_among_them():
    video = torch.arange(10.0).view(1, 10, 1, 1, 1).expand(2, 10, 3, 2, 2) / 10
    assert pictures(video)[1, :, 0, 0, 0].tolist() == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert pictures(video[:, :3]).shape == (2, 3, 3, 2, 2)


def test_pictures_of_every_kind_are_alike():
    grey = np.full((4, 6, 3), 102, dtype=np.uint8)
    wanted = torch.full((1, 3, 4, 6), 0.4)
    for answer in ([Image.fromarray(grey)], grey[None].astype(np.float32) / 255, wanted, wanted[:, :1], [wanted[0]]):
        assert torch.allclose(pictures(answer), wanted)
    assert pictures([[Image.fromarray(grey)] * 2]).shape == (1, 2, 3, 4, 6)
    assert torch.allclose(pictures(grey[None]), wanted)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (0.0, 255.0), (0.0, 12.5)])
def test_pictures_of_an_unknown_range_are_refused(values):
    with pytest.raises(DiffscaleError, match=r"values such as .* not of \[0, 1\]"):
        pictures(torch.tensor(values).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    broken = torch.tensor([torch.nan, -torch.inf, 0.5, 1.001]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert pictures(broken)[0, 0].flatten()[1:].tolist() == [0.0, 0.5, 1.0]


def test_a_video_scores_the_mean_of_its_frames_and_is_dropped_with_one_of_them():
    video = torch.rand(3, 4, 3, 2, 5)
    video[1, 2, 2] = 1.0
    with pytest.warns(UserWarning, match="Dropped"):
        scores = safe_score(Red(), video, ["a", "b", "c"])
    assert scores[[0, 2]].tolist() == pytest.approx(video[[0, 2], :, 0].mean((1, 2, 3)).tolist())
    assert scores[1] == -torch.inf


def test_a_video_is_shown_as_its_frames_side_by_side():
    video = torch.rand(2, 4, 3, 2, 5)
    shown = frame_strip(video)
    assert shown.shape == (2, 3, 2, 20)
    assert torch.equal(shown[1, :, :, 5:10], video[1, 1])


def test_a_verifier_that_chooses_among_pictures_refuses_videos():
    class Chooser(Red):
        def begin(self) -> None: ...
        def choose(self, image: torch.Tensor, prompt: str) -> None: ...

    with pytest.raises(DiffscaleError, match="cannot score videos"):
        safe_score(Chooser(), torch.rand(1, 4, 3, 2, 2), ["a"])


def test_what_is_overridden_is_as_before_afterwards_even_if_it_fails():
    class Named:
        name = "of the class"

    target = Named()
    target.own = 1
    with pytest.raises(RuntimeError), overridden(target, name="ours", own=2):
        assert (target.name, target.own) == ("ours", 2)
        raise RuntimeError
    assert vars(target) == {"own": 1} and target.name == "of the class"
