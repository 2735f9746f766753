"""Files of value models, and the views of verifiers that these are of."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save

from diffscale._util.errors import DiffscaleError
from diffscale.registry.sources import sources
from diffscale.types import Stage, Teachable
from diffscale.verifiers import check, load
from diffscale.verifiers.valued import ValueModel, read_value

PROMPTS = ["a red circle", "two small blue squares above a star"]


@pytest.mark.parametrize("name", ["clip", "pick_score", "image_reward"])
def test_the_last_number_of_a_view_is_the_score(name):
    verifier = load(name, image_model="shapes-flux")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        view, score = verifier.view(images, PROMPTS), verifier(images, PROMPTS)
    assert isinstance(verifier, Teachable)
    torch.testing.assert_close(view[:, -1], score, atol=1e-5, rtol=1e-5)
    if name != "image_reward":
        width = view.shape[1] // 2
        torch.testing.assert_close(view[:, :width].norm(dim=1), torch.ones(2))
        torch.testing.assert_close(view[:, width:-1].sum(1), verifier.cosine(images, PROMPTS), atol=1e-6, rtol=1e-5)


def test_a_file_gives_back_what_was_kept_and_its_digest_is_known_to_journals(tmp_path):
    path = tmp_path / "clip.value"
    rows = torch.randn(1, 257, generator=torch.Generator().manual_seed(0))
    ValueModel("clip", [Stage(0.3)], rows, torch.tensor([0.1]), {"model": "shapes-flux"}).save(path)
    found = read_value(path)
    assert torch.equal(found.weights, rows) and found.stages == [Stage(0.3)] and found.about["model"] == "shapes-flux"
    assert f"file {path}" in sources(f"valued file={path}")
    verifier, images = load(f"valued file={path}", image_model="shapes-flux"), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        value, view = verifier.unfinished(Stage(0.3))(images, PROMPTS), verifier.verifier.view(images, PROMPTS)
    torch.testing.assert_close(value, view @ rows[0] + 0.1)
    assert torch.equal(verifier(images, PROMPTS), verifier.verifier(images, PROMPTS))


TOLD = {"verifier": "clip", "stages": [{"done": 0.5, "via": None}], "about": {}}
RIGHT = {"weights": torch.ones(1, 257), "bias": torch.zeros(1)}


def kept(told=TOLD, tensors=RIGHT, kind="diffscale value 1"):
    return save(tensors, {"format": kind, "value": told if isinstance(told, str) else json.dumps(told)})


@pytest.mark.parametrize(
    ("content", "text", "said"),
    [
        (b"", "", "is no value model that can be read"),
        (kept()[:-5], "", "is no value model that can be read"),
        (kept(kind="diffscale tape 1"), "", "it is of another kind"),
        (kept(tensors={"weights": torch.ones(1, 257)}), "", "it is of another kind"),
        (kept("{"), "", "description is not right"),
        (kept(TOLD | {"stages": []}), "", "its stages is not right"),
        (kept(TOLD | {"stages": [{"done": 2, "via": None}]}), "", r"its stages\.0\.done is not right"),
        (kept(tensors=RIGHT | {"weights": torch.ones(2, 257)}), "", "another shape than it says"),
        (kept(tensors=RIGHT | {"bias": torch.tensor([torch.nan])}), "", "not finite numbers"),
        (kept(tensors=RIGHT | {"bias": torch.zeros(1).half()}), "", "not finite numbers of float32"),
        (kept(), "of=pick_score", "is of the verifier clip, not of pick_score: name it by of="),
        (kept(TOLD | {"verifier": "aesthetic"}), "of=aesthetic", "No value model can be made of aesthetic"),
        (kept(tensors=RIGHT | {"weights": torch.ones(1, 99)}), "", "takes 99 numbers of a picture and clip sees 257"),
    ],
)
def test_a_file_that_is_none_or_of_another_verifier_is_refused(content, text, said, tmp_path):
    (tmp_path / "a.value").write_bytes(content)
    with pytest.raises(DiffscaleError, match=said):
        load(f"valued file={tmp_path / 'a.value'} {text}", image_model="shapes-flux")
    if "numbers of a picture" not in said and "made of" not in said:
        with pytest.raises(DiffscaleError, match=said):  # before anything is loaded
            check(f"valued file={tmp_path / 'a.value'} {text}")


def test_a_verifier_with_arguments_is_named_as_a_member_is(tmp_path):
    ValueModel("clip model=shapes-clip", [Stage(0.3)], RIGHT["weights"], RIGHT["bias"], {}).save(tmp_path / "a.value")
    read = partial(load, image_model="shapes-flux")
    assert read(f"valued of=clip:model=shapes-clip file={tmp_path / 'a.value'}").name == "clip"
