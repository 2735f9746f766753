"""Class-conditional models from folders and from publishers' files, by class names and ids, to the command line."""

import hashlib
import json

import pytest
import torch
from diffscale_shapes.scenes import CLASSES
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from tiny_classes import tiny_dit, tiny_sit, tiny_vae
from typer.testing import CliRunner

import diffscale
from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.bench import generate
from diffscale.bench import run as bench
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.cli.main import app
from diffscale.models.class_conditional import ClassModel, load_sit, published_sit, save_sit
from diffscale.models.copies import load_copies
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.sit import SIZES, SiT, SiTDenoiser
from diffscale.suites import imagenet
from diffscale.types import ClassLabel

CALL = {"num_inference_steps": 2, "solver": "heun", "guidance_scale": 2.0}
NAMES = ["tench", "Golden Retriever", "toad", "tank", "tench"]


@pytest.fixture
def folder(tmp_path):
    model = ClassModel(SiTDenoiser(tiny_sit()), tiny_vae(), NAMES, 25, {})
    save_sit(model, tmp_path / "sit", "a tiny SiT", NAMES, CALL)
    return tmp_path / "sit"


class Seen:
    """Scores by brightness and keeps the conditions it was given."""

    name = "seen"

    def __init__(self):
        self.labels = []

    def __call__(self, images, prompts):
        self.labels += prompts
        return images.mean((1, 2, 3))


def test_a_folder_is_what_was_saved(folder):
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == tiny_sit().state_dict().keys() and "blocks.1.adaLN_modulation.1.weight" in weights
    model = load_sit(str(folder), "cpu", torch.float32)
    for name, weight in model.denoiser.network.state_dict().items():
        assert torch.equal(weight, tiny_sit().state_dict()[name])
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.vae.decode(x).sample, tiny_vae().decode(x).sample)
    assert next(load_sit(str(folder), "cpu", torch.bfloat16).denoiser.network.parameters()).dtype == torch.bfloat16


def test_options_of_loading_are_kept_or_told(folder):
    asked = diffscale.LoadOptions(device="cpu", dtype="bfloat16", vae_slicing=True, vae_tiling=True)
    model = load_pipeline(str(folder), asked)
    assert isinstance(model, ClassModel) and next(model.denoiser.network.parameters()).dtype == torch.bfloat16
    assert model.vae.use_slicing and model.vae.use_tiling
    with pytest.raises(DiffscaleError, match=r"loaded with compile, device, dtype, .*: leave attention, lora"):
        load_pipeline(str(folder), diffscale.LoadOptions(device="cpu", attention="flash", lora=["a/b"]))
    with pytest.raises(DiffscaleError, match=r"loaded already.*set dtype on it"):
        diffscale.search(model, 1, verifier=Seen(), nfe=12, dtype="float16", device="cpu")


def test_a_scheduler_is_none_of_its_options(tmp_path):
    tiny_dit(DDIMScheduler()).save_pretrained(tmp_path / "dit")
    with pytest.raises(DiffscaleError, match="solvers of diffscale: leave the scheduler out"):
        diffscale.search(
            str(tmp_path / "dit"),
            0,
            verifier=Seen(),
            nfe=4,
            loading=diffscale.LoadOptions(device="cpu", scheduler="EulerDiscreteScheduler"),
        )


def test_a_run_that_could_not_begin_leaves_its_folder_free(folder, tmp_path):
    flags = ["--model", str(folder), "--verifier", "shapes-judge", "--budget", "6", "--output", str(tmp_path / "out")]
    wrong = CliRunner().invoke(app, ["generate", "todd", *flags, "--device", "cpu"])
    assert isinstance(wrong.exception, UnknownName)
    other = CliRunner().invoke(app, ["generate", "toad", *flags, "--device", "cpu"])
    assert "holds another run" not in str(other.exception)


def test_a_compiled_sit_gives_the_same(folder, monkeypatch):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what: compiled(what, backend=backend))
    torch._dynamo.reset()
    ends = []
    for compile in (False, True):
        model = load_pipeline(str(folder), diffscale.LoadOptions(device="cpu", compile=compile))
        sampler = model.sampler(["1"], 2, {})
        ends.append(sampler.run(sampler.prior(torch.tensor([5]), torch.tensor([0]))).x)
        assert bool(graphs) == compile
    torch.testing.assert_close(*ends)
    for model in load_copies(str(folder), diffscale.LoadOptions(compile=True), ["cpu", "cpu"]):
        sampler = model.sampler(["1"], 2, {})
        torch.testing.assert_close(sampler.run(sampler.prior(torch.tensor([5]), torch.tensor([0]))).x, ends[0])


def test_an_autoencoder_may_be_shared(folder):
    save_sit(load_sit(str(folder), "cpu", torch.float32), folder.parent / "other", "another", NAMES, CALL, "../sit/vae")
    assert not (folder.parent / "other" / "vae").exists()
    assert load_sit(str(folder.parent / "other"), "cpu", torch.float32).vae.config.latent_channels == 4


@pytest.mark.parametrize("asked", ["golden retriever", "1", 1])
def test_a_search_by_name_or_id_is_the_same(folder, asked):
    seen = Seen()
    result = diffscale.search(str(folder), asked, verifier=seen, nfe=12, device="cpu")
    assert result.ledger.nfe == 12 and result.candidates == 3 and result.ledger.network_forwards == 24
    assert all(isinstance(label, ClassLabel) and label.class_id == 1 for label in seen.labels)
    assert set(seen.labels) == {"Golden Retriever"}
    again = diffscale.search(str(folder), "GOLDEN RETRIEVER", verifier=Seen(), nfe=12, device="cpu")
    assert again.best.key == result.best.key and torch.equal(again.best.image, result.best.image)
    free = diffscale.search(
        str(folder), asked, verifier=Seen(), nfe=12, steps=6, pipe_args={"solver": "ddim", "guidance_scale": 1.0},
        device="cpu",
    )  # fmt: skip
    assert free.candidates == 2 and free.ledger.network_forwards == 12
    loaded = load_sit(str(folder), "cpu", torch.float32)
    assert torch.equal(diffscale.search(loaded, 1, verifier=Seen(), nfe=12).best.image, result.best.image)


def test_unknown_classes_and_arguments_are_told_clearly(folder):
    def search(prompt, **args):
        return diffscale.search(str(folder), prompt, verifier=Seen(), nfe=12, device="cpu", pipe_args=args)

    with pytest.raises(UnknownName, match=r"did you mean 'golden retriever'.*id from 0 to 4"):
        search("golden retreiver")
    with pytest.raises(DiffscaleError, match="classes 0 to 4, not 5"):
        search("5")
    with pytest.raises(DiffscaleError, match="classes 0 and 4: give the id"):
        search("tench")
    with pytest.raises(UnknownName, match="did you mean 'guidance_scale'"):
        search("toad", guidance_scal=3.0)
    with pytest.raises(DiffscaleError, match="takes guidance_scale as float, not 'much'"):
        search("toad", guidance_scale="much")
    with pytest.raises(UnknownName, match="solver"):
        search("toad", solver="hain")


def test_the_command_line(folder, tmp_path):
    output = tmp_path / "out"
    (tmp_path / "red_of_classes.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        asked = [
            "generate", "toad", "--model", str(folder), "--verifier", "red_of_classes:red", "--budget", "12",
            "--steps", "4", "--output", str(output), "--device", "cpu", "--pipe-arg", "solver=euler",
        ]  # fmt: skip
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((output / "result.json").read_text())
    assert result["nfe"] == 12 and result["network_forwards"] == 24 and result["candidates"] == 3
    assert (output / "best.png").exists()


@pytest.mark.parametrize("asked", ["id", "blue circle"])
def test_a_class_by_its_id_is_judged_as_by_its_name(asked, tmp_path):
    number = CLASSES.index("blue circle")
    settings = GenerateConfig(
        model="shapes-sit-s", prompt=asked.replace("id", str(number)), verifier="shapes-judge", budget=2, steps=1,
        device="cpu",
    )  # fmt: skip
    assert generate.prepare(tmp_path / "run", settings) is None
    told = generate.run(settings, tmp_path / "run")
    assert told["prompt"] == "blue circle"
    assert set(told["judges"]["shapes-judge"]["best"]) == {"score", "cleanliness"}


def test_a_bench_gives_every_verifier_the_class(folder, tmp_path, monkeypatch):
    (tmp_path / "numbers_of_classes.py").write_text(
        "def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n\n"
        "def number(images, prompts):\n    return images.new_tensor([float(p.class_id) for p in prompts])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    verifiers = ["numbers_of_classes:red", "numbers_of_classes:number"]
    settings = BenchConfig(model=str(folder), search=["random"], verifier=verifiers, budget=[8], device="cpu")
    samples = bench.run(settings, ["toad", "1"], tmp_path)
    assert [sample["scores"]["numbers_of_classes:number"]["best"] for sample in samples] == [2.0, 1.0] * 2


def test_published_weights_are_a_pickle_opened_by_its_digest(tmp_path, monkeypatch):
    from diffscale.models import sit

    small = {**SIZES, "tiny": tiny_sit().config}
    monkeypatch.setattr(sit, "SIZES", small)
    torch.manual_seed(0)
    weights = tiny_sit().state_dict()
    weights["y_embedder.embedding_table.weight"] = torch.randn(1001, 16)
    path = tmp_path / "SiT-XL-2-256x256.pt"
    torch.save(weights, path)
    tiny_vae().save_pretrained(tmp_path / "vae")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DiffscaleError, match=digest):
        published_sit(str(path), sha256="0" * 64, vae=str(tmp_path / "vae"))
    model = published_sit(str(path), sha256=digest, vae=str(tmp_path / "vae"))
    assert model.label("golden retriever").class_id == 207 and model.label("281") == imagenet.names()[281]
    with pytest.raises(DiffscaleError, match="classes 657 and 744"):
        model.label("missile")
    save_sit(model, tmp_path / "sit", "published", "imagenet", CALL)
    again = load_sit(str(tmp_path / "sit"), "cpu", torch.float32)
    x, ids = torch.randn(1, 4, 8, 8), torch.tensor([207])
    with torch.no_grad():
        assert torch.equal(
            *(m.denoiser.network(x, torch.ones(1), ids) for m in (model, again)),
        )
    assert isinstance(again.denoiser.network, SiT) and len(again.names) == 1000


def test_what_is_wrong_with_a_folder_is_said(folder):
    stated = json.loads((folder / "diffscale.json").read_text())

    def loading(**changed):
        (folder / "diffscale.json").write_text(json.dumps({**stated, **changed}))
        return load_sit(str(folder), "cpu", torch.float32)

    with pytest.raises(DiffscaleError, match="5 classes, but 1000 names"):
        loading(classes="imagenet")
    with pytest.raises(UnknownName, match="imagenet"):
        loading(classes="cifar")
    with pytest.raises(DiffscaleError, match="autoencoder"):
        loading(vae="nowhere")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(DiffscaleError, match="not those of a SiT"):
        loading()
    (folder / "config.json").write_text(json.dumps({**config, "deepth": 3}))
    with pytest.raises(UnknownName, match="did you mean 'depth'"):
        loading()
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DiffscaleError, match=r"no file model\.safetensors"):
        loading()


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("config.json", {"hidden_size": "wide"}, r"Mend hidden_size in .*config\.json: .*integer"),
        ("config.json", {"depth": None}, r"Mend depth in .*config\.json: .*integer"),
        ("config.json", {"mlp_ratio": [4]}, r"Mend mlp_ratio in .*config\.json: .*number"),
        ("config.json", {"num_heads": 0}, "num_heads must be 1 or more, not 0"),
        ("config.json", {"patch_size": -2}, "patch_size must be 1 or more, not -2"),
        ("config.json", {"class_dropout_prob": 7}, "class_dropout_prob from 0 to 1"),
        ("config.json", {"hidden_size": 18}, "hidden_size one of num_heads and of 4"),
        ("diffscale.json", {"call": {"num_inference_steps": "few"}}, r"Mend call\.num_inference_steps in .*diffscale"),
        ("diffscale.json", {"call": {"num_inference_steps": 0}}, r"Mend call\.num_inference_steps in .*diffscale"),
        ("diffscale.json", {"call": 25}, r"Mend call in .*diffscale\.json"),
        ("diffscale.json", {"classes": 48}, r"Mend classes.* in .*diffscale\.json"),
        ("diffscale.json", {"classes": [1, 2, 3, 4, 5]}, r"Mend classes.* in .*diffscale\.json"),
        ("diffscale.json", {"classes": NAMES[:4]}, "5 classes, but 4 names are stated: put the right list"),
        ("diffscale.json", {"vae": 3}, r"Mend vae in .*diffscale\.json"),
        ("diffscale.json", "{", r"diffscale\.json must hold one JSON object"),
        ("config.json", "[]", r"config\.json must hold one JSON object"),
    ],
)
def test_what_is_wrong_in_its_files_is_one_sentence(folder, file, changed, said):
    path = folder / file
    broken = changed if isinstance(changed, str) else json.dumps({**json.loads(path.read_text()), **changed})
    path.write_text(broken)
    with pytest.raises(DiffscaleError, match=said) as told:
        diffscale.search(str(folder), 0, verifier=Seen(), nfe=4, device="cpu")
    assert "\n" not in str(told.value)


def test_a_folder_that_states_no_steps_is_called_with_the_models_own(folder):
    path = folder / "diffscale.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "call": {"solver": "euler"}}))
    call = plain_call(load_sit(str(folder), "cpu", torch.float32))
    assert call.steps == 25 and call.args == {"solver": "euler"}
