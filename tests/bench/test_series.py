"""What series share: prompts with repeats, and the tasks of a search for them."""

import pytest

from diffscale._util.errors import DiffscaleError
from diffscale.bench.series import Cell, PromptRepeat, rows_of, tasks_of
from diffscale.engine import noise
from diffscale.types import ClassLabel


def test_two_classes_of_one_name_are_two_prompts_and_two_of_one_name_are_one():
    crane, other = ClassLabel("crane", 134), ClassLabel("crane", 517)
    wanted = [PromptRepeat(prompt, repeat) for prompt in (crane, other) for repeat in range(2)]
    assert len(set(wanted)) == 4 and wanted[0] == PromptRepeat(ClassLabel("crane", 134), 0)
    prompts, rows = rows_of(wanted)
    assert [prompt.class_id for prompt in prompts] == [134, 517] and rows == [0, 0, 1, 1]


def test_all_searches_of_a_prompt_and_repeat_begin_from_one_key():
    wanted = [PromptRepeat("a red circle", repeat) for repeat in range(2)]
    one, two = (tasks_of(search, 8, wanted, [0, 0], 5, "ab") for search in ("random", "zero_order n=2"))
    assert [task.key for task in one] == [task.key for task in two] == [each.key(5) for each in wanted]
    assert one[1].key == noise.fold(noise.root(5), "a red circle", 1) != one[0].key
    assert [(task.name, task.budget, task.prompt_index) for task in two] == [("a", 8, 0), ("b", 8, 0)]
    with pytest.raises(DiffscaleError, match="did you mean 'random'"):
        tasks_of("radnom", 8, wanted, [0, 0], 5, "ab")


def test_a_cell_knows_its_samples():
    cell = Cell("random", "clip", 8)
    samples = [{"search": "random", "verifier": "clip", "budget": budget} for budget in (8, 16, 8)]
    assert cell.samples_in(samples) == [samples[0], samples[2]] and cell.name == "random | clip | 8"
