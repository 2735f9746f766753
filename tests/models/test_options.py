"""The page of options: what makes a run the same run, what is written down, what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffscale
from diffscale._util import config
from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.models.options import MEANS, LoadOptions

OTHER = {
    "device": "cpu",
    "dtype": "bfloat16",
    "variant": "fp16",
    "revision": "refs/pr/1",
    "allow_pickles": True,
    "scheduler": "DDIMScheduler eta=1",
    "lora": ["owner/name:0.5"],
    "quantize": "torchao",
    "offload": "model",
    "vae_slicing": True,
    "vae_tiling": True,
    "compile": True,
    "attention": "flash",
}


def test_every_option_is_covered_here_and_says_what_it_is() -> None:
    assert OTHER.keys() == LoadOptions.model_fields.keys()
    assert all(field.description for field in LoadOptions.model_fields.values())


@pytest.mark.parametrize("name", OTHER)
def test_what_takes_only_memory_and_time_makes_no_other_run(name: str) -> None:
    used = {"dtype": "float32"}
    one = GenerateConfig(**used)
    other = GenerateConfig(**{**used, name: OTHER[name]})
    assert (one.difference(other) == "") == (name in MEANS)
    assert (LoadOptions(**used).decisive() == other.decisive()) == (name in MEANS)
    bench = BenchConfig(**{**used, name: OTHER[name]})
    assert (BenchConfig(**used).shared() == bench.shared()) == (name in MEANS)


def test_journals_from_before_an_option_existed_are_of_the_same_run() -> None:
    assert LoadOptions(dtype="float32").decisive() == {"dtype": "float32"}
    assert BenchConfig(dtype="float32").shared() == {
        "model": "shapes-flux", "seed": 0, "steps": None, "pipe_args": {}, "dtype": "float32",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["draft_model", "draft_cache", "draft_decoder"])
def test_ways_of_drafting_make_another_run_where_they_are_given(name: str) -> None:
    given = {"dtype": "float32", name: "taylorseer"}
    assert BenchConfig(**given).shared() == BenchConfig(dtype="float32").shared() | {name: "taylorseer"}
    assert GenerateConfig(dtype="float32").difference(GenerateConfig(**given)) == f"{name} was 'taylorseer', now None"
    assert GenerateConfig(**given).decisive() == LoadOptions(dtype="float32").decisive()
    assert set(GenerateConfig(**given).drafting.decisive()) == {name}


@given(st.sets(st.sampled_from(sorted(OTHER))))
def test_a_configuration_reads_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    settings = GenerateConfig(negative_prompt="no", **{name: OTHER[name] for name in names})
    config.save(settings, file)
    assert config.resolve(GenerateConfig, file) == settings
    assert file.read_text().startswith("prompt:")
    assert settings.asked() == {name: OTHER[name] for name in names}


def test_configurations_from_before_these_options_load(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("prompt: a star\nmodel: shapes-flux\ndevice: null\ndtype: bfloat16\npipe_args: {}\n")
    assert config.resolve(GenerateConfig, file).dtype == "bfloat16"


@pytest.mark.parametrize("other", [{"compile": True}, {"quantize": "torchao"}])
def test_sequential_offload_goes_alone(other: dict[str, object]) -> None:
    with pytest.raises(DiffscaleError, match=f"does not go with {next(iter(other))}"):
        LoadOptions(offload="sequential", **other)
    assert LoadOptions(offload="model", **other).asked()


def test_a_loaded_pipeline_is_used_as_it_is(sd: object) -> None:
    with pytest.raises(DiffscaleError, match="loaded already and used as it is: set dtype, lora on it"):
        diffscale.search(sd.pipe, "a star", verifier=lambda x, _: x.mean((1, 2, 3)), device="cpu", dtype="float16",
                         loading=LoadOptions(lora=["somewhere"]))  # fmt: skip
