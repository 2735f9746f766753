"""Commands that are killed at moments by chance, and given again, end as one that was never killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from commands import forked
from PIL import Image
from safetensors.torch import load_file

SEARCH = "--search", "zero_order n=4", "--budget", "160", "--batch-size", "2"
# Row by row: what a kill leaves of a micro-batch runs in one of another size, where float32 sums round otherwise.
CELLS = (
    "--limit", "2", "--search", "random", "--search", "fk k=3", "--steps", "10", "--budget", "30", "--batch-size", "1",
)  # fmt: skip
TRAINING = (
    "--model", "shapes-flux", "--train_data_dir", "data", "--max_train_steps", "8", "--rank", "2",
    "--checkpointing_steps", "1", "--num_validation_images", "1",
)  # fmt: skip
COMMANDS = {
    "generate": ["generate", "two red stars", *SEARCH, "--output"],
    "bench": ["bench", "shapes-mini", *CELLS, "--output"],
    "train": ["train", "sft", *TRAINING, "--output_dir"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    (folder / "data").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 10, 99)).save(folder / "data" / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(3)]
    (folder / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def found(home: Path, command: str, output: str) -> object:
    """What the command computed, without what it took."""
    folder = home / output
    if command == "generate":
        result = json.loads((folder / "result.json").read_text())
        kept = ("best", "baseline", "trace", "nfe", "network_forwards", "candidates", "dropped", "judges")
        return {name: result[name] for name in kept}, (folder / "best.png").read_bytes()
    if command == "bench":
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        kept = ("name", "score", "scores", "trace", "nfe", "network_forwards", "dropped")
        pictures = [(folder / sample["image"]).read_bytes() for sample in samples]
        return sorted(zip(([sample[name] for name in kept] for sample in samples), pictures, strict=True), key=str)
    weights = load_file(folder / "pytorch_lora_weights.safetensors")
    return {name: tensor.tolist() for name, tensor in weights.items()}


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_change_nothing(home, command, kills, monkeypatch):
    monkeypatch.chdir(home)
    whole, cut = f"{command} {kills} whole", f"{command} {kills} cut 0"
    began = time.monotonic()
    assert os.waitpid(forked(*COMMANDS[command], whole), 0)[1] == 0
    took, chance, killed, runs = time.monotonic() - began, random.Random(kills), 0, 0
    more = ["--resume_from_checkpoint", "latest"] if command == "train" else []
    while killed < kills:
        process = forked(*COMMANDS[command], cut, *(more if Path(cut).exists() else []))
        time.sleep(chance.uniform(0.05, 0.9) * took)
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        if status == 0:  # it ended before it was killed: the next kills are of another run
            assert found(home, command, cut) == found(home, command, whole)
            runs += 1
            cut = f"{command} {kills} cut {runs}"
            continue
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    assert os.waitpid(forked(*COMMANDS[command], cut, *(more if Path(cut).exists() else [])), 0)[1] == 0
    assert found(home, command, cut) == found(home, command, whole)
