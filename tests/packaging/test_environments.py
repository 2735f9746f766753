"""Wheels in environments of their own: diffscale alone, with Shapes, and with a plug-in that nobody here knows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHAPES, PLUGIN = ROOT / "packages" / "diffscale-shapes", ROOT / "examples" / "plugin"
pytestmark = pytest.mark.slow
# What the surrounding session sets must not reach the new environments.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def run(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=CLEAN, check=False, **more)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of all three, by distribution."""
    out = tmp_path_factory.mktemp("wheels")
    done = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, ROOT, SHAPES, PLUGIN)
    assert done.returncode == 0, done.stderr
    return {path.name.split("-")[0]: path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with diffscale and the plug-in, without Shapes."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    chosen = [wheels["diffscale"], wheels["diffscale_example"], "pytest", "hatchling"]
    done = run(home / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", *chosen)
    assert done.returncode == 0, done.stderr
    return home / "bin"


def test_weights_are_in_the_wheel_of_shapes_alone(wheels: dict[str, Path]) -> None:
    names = {name: zipfile.ZipFile(path).namelist() for name, path in wheels.items()}
    assert not [name for name in names["diffscale"] if name.endswith(".safetensors") or "shapes" in name.split("/")[0]]
    assert wheels["diffscale"].stat().st_size < 2e6 < 5e7 < wheels["diffscale_shapes"].stat().st_size
    assert "diffscale/py.typed" in names["diffscale"]


def test_the_sdist_of_diffscale_has_no_weights(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "python", "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        assert not [name for name in archive.getnames() if "packages/" in name]
    assert made.stat().st_size < 2e7


def test_without_shapes_a_command_says_how_to_get_a_model(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "diffscale", "generate", "rain", cwd=tmp_path)
    assert done.returncode == 2 and "shapes-flux" in done.stderr and "packages/diffscale-shapes" in done.stderr
    done = run(environment / "diffscale", "bench", cwd=tmp_path)
    assert done.returncode == 2 and "shapes-mini" in done.stderr
    done = run(environment / "diffscale", "reproduce", "A.table2", cwd=tmp_path)
    assert done.returncode == 2 and "setting shapes comes with the package diffscale-shapes" in done.stderr


def test_a_plug_in_is_used_by_its_names(environment: Path, tmp_path: Path) -> None:
    listed = run(environment / "diffscale", "list", "searches", cwd=tmp_path).stdout
    assert "survival" in listed and "diffscale-example" in listed
    arguments = ["--model", "example-tiny-sd", "--search", "survival population=4", "--verifier", "sharpness power=2"]
    done = run(
        environment / "diffscale", "generate", "rain", *arguments, "--budget", "80", "--output", "one", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["nfe"] == 80 and result["best"]["score"] > result["baseline"]["score"]
    done = run(
        environment / "diffscale", "bench", "weather", *arguments, "--budget", "24", "--output", "many", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "many" / "samples.jsonl").read_text().splitlines()) == 4


def test_a_plug_in_s_search_survives_a_kill(environment: Path, tmp_path: Path) -> None:
    command = [environment / "diffscale", "generate", "snow", "--model", "example-tiny-sd", "--search", "survival"]
    command += ["--verifier", "sharpness", "--budget", "1200", "--batch-size", "2", "--output"]
    killed = subprocess.Popen([*map(str, command), "killed"], env=CLEAN, cwd=tmp_path, stderr=subprocess.PIPE)
    journal, deadline = tmp_path / "killed" / "journal.sqlite", time.monotonic() + 120
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for output in ("killed", "whole"):
        done = run(*command, output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "whole")]
    for name in ("best", "baseline", "nfe", "candidates", "trace"):
        assert found[0][name] == found[1][name]


def test_a_plug_in_s_tests_inherit_the_properties(environment: Path, tmp_path: Path) -> None:
    shutil.copytree(PLUGIN / "tests", tmp_path / "tests")
    done = run(environment / "python", "-m", "pytest", "-q", "tests", cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_with_both_the_small_world_is_there(wheels: dict[str, Path], environment: Path, tmp_path: Path) -> None:
    done = run(
        environment / "pip", "install", "-q", "--no-deps", "--target", tmp_path / "shapes", wheels["diffscale_shapes"]
    )
    assert done.returncode == 0, done.stderr
    code = "from diffscale.cli.main import run; run()"
    more = {"env": CLEAN | {"PYTHONPATH": str(tmp_path / "shapes")}}
    command = [str(environment / "python"), "-c", code, "generate", "a red star", "--budget", "40", "--output", "found"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found" / "result.json").read_text())["judges"]["shapes-judge"]
