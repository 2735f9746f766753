"""SiT against its published layout and against the same formulas written with functional operations."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.models.sit import SIZES, SiT, SiTConfig, config_of, positions

TINY = SiTConfig(input_size=8, hidden_size=24, depth=2, num_heads=3, num_classes=5)


def randomised(config, seed=0):
    """A network none of whose parts is the identity, as it is when made."""
    generator = torch.Generator().manual_seed(seed)
    net = SiT(config).eval()
    for name, weight in net.named_parameters():
        if name != "pos_embed":
            weight.data = torch.randn(weight.shape, generator=generator) * (0.5 / weight[0].numel() ** 0.5)
    return net


def published(depth=28, width=1152, classes=1000, tokens=256, out=32):
    """Names and shapes of SiT-XL/2 as `models.py` of github.com/willisma/SiT makes them, for 256 pixels."""
    layout = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "final_layer.linear.weight": (out, width),
        "final_layer.linear.bias": (out,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }
    for i in range(depth):
        for name, (rows, columns) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
            "adaLN_modulation.1": (6 * width, width),
        }.items():
            layout[f"blocks.{i}.{name}.weight"] = (rows, columns)
            layout[f"blocks.{i}.{name}.bias"] = (rows,)
    return layout


def test_the_largest_has_the_published_layout():
    layout = published()
    with torch.device("meta"):
        net = SiT(SIZES["SiT-XL/2"])
        weights = {name: torch.empty(shape) for name, shape in layout.items()}
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == layout
    assert config_of(weights) == SIZES["SiT-XL/2"]
    # As the paper counts them (table 1): 675 M, positions not among them.
    assert round(sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6) == 675


def test_every_size_loads_strictly_and_is_told_by_its_shapes():
    for name, millions in {"SiT-S/2": 33, "SiT-B/2": 130, "SiT-L/2": 458}.items():
        config = SIZES[name]
        layout = published(config.depth, config.hidden_size)
        with torch.device("meta"):
            net = SiT(config)
            weights = {key: torch.empty(shape) for key, shape in layout.items()}
        net.load_state_dict(weights, strict=True, assign=True)
        assert config_of(weights) == config
        assert round(sum(p.numel() for n, p in net.named_parameters() if n != "pos_embed") / 1e6) == millions
    with torch.device("meta"):
        plain = {key: torch.empty(shape) for key, shape in published(12, 768, 10, 64, 16).items()}
    assert config_of(plain) == replace(SIZES["SiT-B/2"], num_classes=10, learn_sigma=False, input_size=16)
    with pytest.raises(DiffscaleError, match="width 99"):
        config_of({**plain, "x_embedder.proj.weight": torch.empty(99, 4, 2, 2)})
    with pytest.raises(DiffscaleError, match="not those of a SiT"):
        config_of({"weight": torch.empty(1)})


def plainly(w, x, t, y, heads, patch):
    """SiT written anew: loops over patches and heads, and functional operations on the published names."""

    def linear(name, value):
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def normed(value, shift, scale):
        mean, variance = value.mean(-1, keepdim=True), value.var(-1, keepdim=True, unbiased=False)
        return (value - mean) / (variance + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    rates = torch.tensor([10_000 ** (-i / 128) for i in range(128)], dtype=x.dtype)
    time = torch.cat([torch.cos(t[:, None] * rates), torch.sin(t[:, None] * rates)], 1)
    told = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time)))
    told = F.silu(told + w["y_embedder.embedding_table.weight"][y])
    side = x.shape[-1] // patch
    kernel = w["x_embedder.proj.weight"].flatten(1)
    patches = [
        x[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten(1)
        for i in range(side)
        for j in range(side)
    ]
    h = torch.stack(patches, 1) @ kernel.T + w["x_embedder.proj.bias"] + w["pos_embed"]
    for i in range(len({name.split(".")[1] for name in w if name.startswith("blocks.")})):
        block = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", told).chunk(6, 1)
        q, k, v = linear(f"{block}.attn.qkv", normed(h, shift, scale)).chunk(3, -1)
        size = q.shape[-1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weight = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(-1)
            mixed.append(weight @ v[..., part])
        h = h + gate[:, None] * linear(f"{block}.attn.proj", torch.cat(mixed, -1))
        inner = linear(f"{block}.mlp.fc1", normed(h, shift2, scale2))
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        h = h + gate2[:, None] * linear(f"{block}.mlp.fc2", inner)
    h = linear("final_layer.linear", normed(h, *linear("final_layer.adaLN_modulation.1", told).chunk(2, 1)))
    out = torch.zeros(len(x), h.shape[-1] // patch**2, *x.shape[2:], dtype=x.dtype)
    for i in range(side):
        for j in range(side):
            pixels = h[:, i * side + j].view(len(x), patch, patch, -1)
            out[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = pixels.permute(0, 3, 1, 2)
    return out[:, : x.shape[1]]


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_the_forward_is_that_of_the_formulas(learn_sigma):
    net = randomised(replace(TINY, learn_sigma=learn_sigma)).double()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, y = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), torch.tensor([0, 4, 5])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, y), plainly(net.state_dict(), x, t, y, 3, 2), atol=1e-9, rtol=1e-9)
        assert net(x, t, y).abs().max() > 0.01
        near = net.bfloat16()(x.bfloat16(), t.float(), y)
    assert near.dtype == torch.bfloat16 and near.isfinite().all()


def test_positions_tell_the_column_first():
    at = positions(3, 8)
    assert at.shape == (9, 8)
    row, column = 2, 1
    wanted = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in (1, 0.01)]
    torch.testing.assert_close(at[3 * row + column], torch.tensor(wanted))


def test_a_new_network_says_nothing_and_is_trained_from_there():
    net = SiT(TINY)
    out = net(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 5]))
    assert not out.any()
    out.sum().backward()
    assert net.final_layer.linear.bias.grad.any() and net.pos_embed.grad is None
    with pytest.raises(DiffscaleError, match="multiple"):
        SiTConfig(input_size=9)
