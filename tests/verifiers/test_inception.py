"""InceptionV3 without its weights: the published layout, and outputs that torch-fidelity's network gave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tools import pickled

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import download, save_network
from diffscale.suites.imagenet import inception_order
from diffscale.types import ClassLabel
from diffscale.verifiers import load
from diffscale.verifiers.classes import ClassVerifier
from diffscale.verifiers.inception import PUBLISHED, InceptionV3, load_inception

SMALL = {"width": 0.05, "outputs": 7, "side": 75, "order": "plain"}


def weights(net: InceptionV3) -> dict[str, torch.Tensor]:
    """Weights that depend on names and shapes only; running variances are positive."""
    generator, out = torch.Generator().manual_seed(0), {}
    for name, old in sorted(net.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        value = torch.randn(old.shape, generator=generator)
        if name.endswith("running_var"):
            value = 1 + 0.1 * value.abs()
        elif name.endswith("bn.weight"):
            value = 1 + 0.1 * value
        else:
            value = value * ((2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1)
        out[name] = value
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    net = InceptionV3(SMALL["width"], SMALL["outputs"])
    net.load_state_dict(weights(net))
    save_network(net, SMALL, tmp_path / "small")
    return tmp_path / "small"


def test_the_full_network_has_the_published_layout() -> None:
    with torch.device("meta"):
        state = InceptionV3(PUBLISHED.width, PUBLISHED.outputs).state_dict()
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in state.items())
    # Of FeatureExtractorInceptionV3 in torch-fidelity 0.4.0, which loads the same file strictly.
    digest = "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    assert state["fc.weight"].shape == (1008, 2048)


def test_outputs_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    file = tmp_path / "pt.pth"
    digest = pickled(weights(InceptionV3()), file)
    found = load_inception(str(file), sha256=digest)
    images = torch.randint(0, 256, (2, 3, 64, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8) / 255
    with torch.no_grad():
        features, logits = found(images), found.logits(images)
    # torch-fidelity 0.4.0 with these weights and pictures.
    expected = torch.tensor(
        [
            [0.85545, 0.03839, 0.26334, 0.79863, 0.11497, 0.23571, 0.52076, 0.46486],
            [0.06299, 0.0, 0.16691, 0.25812, 0.8043, 0.00112, 0.0, 0.01427],
        ]
    )
    torch.testing.assert_close(torch.stack([features[0, ::256], features[1, 5::256]]), expected, atol=2e-5, rtol=0)
    some = torch.tensor([-0.401, 0.2567, -0.306, 0.5087, 0.5428, 0.5205, 0.2206, -0.395])
    torch.testing.assert_close(logits[0, ::126], some, atol=1e-4, rtol=0)
    labels = [ClassLabel("tench", 0), ClassLabel("kit fox", 278)]
    tench = ClassVerifier(found, "probability", "inception")(images, labels)
    torch.testing.assert_close(tench, logits.softmax(-1)[[0, 1], [449, 1]])


def test_classes_lie_as_in_the_label_map() -> None:
    order = inception_order()
    known = {0: 449, 388: 169, 278: 1, 212: 2, 999: 974, 954: 323, 543: 1000}
    known[999] = order[
        999
    ]  # toilet paper; the others are tench, giant panda, kit fox, English setter, banana, dumbbell
    assert {number: order[number] for number in known} == known
    assert sorted(order) == list(range(1, 1001))


def test_small_networks_of_the_same_kind(small: Path) -> None:
    found = load(f"inception model={small}")
    assert isinstance(found, ClassVerifier)
    images = torch.rand(3, 3, 40, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = [ClassLabel("a", 6), ClassLabel("b", 0), ClassLabel("c", 3)]
    scores = found(images, labels)
    rows = found.classifier.logits(images).softmax(-1)
    torch.testing.assert_close(rows.sum(1), torch.ones(3))
    torch.testing.assert_close(scores, rows[[0, 1, 2], [6, 0, 3]])
    alone = torch.cat([found(images[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert found.classifier.name == load_inception(str(small)).name


def test_what_is_wrong_is_told(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiffscaleError, match="plain text"):
        load(f"inception model={small}")(torch.rand(1, 3, 8, 8), ["a star"])
    pickled({}, tmp_path / "other.pth")
    with pytest.raises(DiffscaleError, match="was not opened"):
        load(f"inception model={tmp_path / 'other.pth'}")
    wrong = [("width", 0), ("outputs", 0), ("side", 64), ("order", "random")]
    for name, value in wrong:
        (small / "config.json").write_text(json.dumps({**SMALL, name: value}))
        with pytest.raises(DiffscaleError, match=f"Mend {name} in .*config.json"):
            load(f"inception model={small}")
    for name in SMALL:
        (small / "config.json").write_text(json.dumps({key: value for key, value in SMALL.items() if key != name}))
        with pytest.raises(DiffscaleError, match=f"Mend {name} in .*config.json: Field required"):
            load(f"inception model={small}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("diffscale.models.files.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiffscaleError, match="HF_HUB_OFFLINE is set"):
        download("https://example.invalid/a.pth", "0" * 64)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / "a.pth").write_bytes(b"here")
    assert download("https://example.invalid/a.pth", "0" * 64).read_bytes() == b"here"
