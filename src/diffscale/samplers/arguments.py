"""Arguments of a pipeline's call as users give them: checked, dealt out to the rows of a batch, blamed if it fails."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, first_line, unknown

SAMPLERS_OWN: Final = {
    "prompt",
    "latents",
    "num_inference_steps",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "output_type",
    "return_dict",
    "generator",
    "callback_on_step_end",
}
"""Arguments of a pipeline's call that samplers set."""

PICTURES: Final = ("image", "mask_image", "control_image")
"""Arguments that are pictures to start from."""


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What the call of a pipeline takes, by name."""
    return inspect.signature(type(pipe).__call__).parameters


def is_text(name: str) -> bool:
    """Whether an argument is the prompt, or goes with it as another text."""
    return re.fullmatch(r"(negative_)?prompt(_\d)?", name) is not None


def embeddings(args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `args` that stand for the prompt, which pipelines do not take beside them; by name.

    Most pipelines call them `prompt_embeds`; some have several (`prompt_embeds_t5` and `prompt_embeds_llama3` of
    HiDream, `prompt_embeds_qwen` and `prompt_embeds_clip` of Kandinsky 5).
    """
    return {name: value for name, value in args.items() if name.startswith("prompt_embeds") and value is not None}


def count_prompts(name: str, value: Any) -> int:
    """Of how many prompts the embeddings `value`, a tensor or a list, are."""
    return value.shape[_prompt_axis(name)] if isinstance(value, Tensor) else len(value)


def _prompt_axis(name: str) -> int:
    """The axis of a tensor argument along which the prompts are: HiDream has Llama's layers before them."""
    return 1 if name.endswith("embeds_llama3") else 0


def not_a_pipeline(given: Any) -> DiffscaleError:
    """The error for something else in the place of a pipeline."""
    return DiffscaleError(
        f"{type(given).__name__} is no diffusers pipeline: give one, or its name; a network of your own becomes a "
        "Sampler by diffscale.DenoiserSampler, which diffscale.search takes (docs/own_network.md)."
    )


def unknown_argument(pipe: Any, name: str) -> DiffscaleError:
    """The error for an argument that the pipeline's call does not take."""
    taken = call_parameters(pipe).keys() - SAMPLERS_OWN - {"self"}
    return unknown(f"argument of {type(pipe).__name__}", name, taken, "See the documentation of its call.")


def check_arguments(pipe: Any, prompts: Sequence[str], args: Mapping[str, Any]) -> None:
    """Raises DiffscaleError for arguments that the pipeline does not take or that are the sampler's."""
    taken = call_parameters(pipe)
    if not prompts:
        raise DiffscaleError("Give at least one prompt.")
    if not hasattr(pipe, "components"):
        raise not_a_pipeline(pipe)
    if "prompt" not in taken:
        raise DiffscaleError(
            f"{type(pipe).__name__} takes no prompt, and a search is for one: use a pipeline that draws from a text."
        )
    if ours := sorted(SAMPLERS_OWN & set(args)):
        raise DiffscaleError(f"Leave {', '.join(ours)} out of pipe_args: the sampler sets them.")
    if wrong := sorted(set(args) - set(taken)):
        raise unknown_argument(pipe, wrong[0])
    for name, value in args.items():
        if not is_text(name) or value is None or isinstance(value, str):
            continue
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise DiffscaleError(f"Give {name} as a text, or as a list of texts, not as {value!r}.")
        if len(value) not in (1, len(prompts)):
            raise DiffscaleError(f"Give one {name}, or one for each of the {len(prompts)} prompts, not {len(value)}.")


def arguments_of_rows(args: Mapping[str, Any], rows: Sequence[int], prompts: Sequence[str]) -> dict[str, Any]:
    """`args` of a call for a batch of `rows`, with their prompts.

    A tensor, or a list of embeddings, with an entry for each prompt is dealt out by rows. One picture for one prompt
    stays one, as pipelines encode it once for the whole batch. Texts, such as negative prompts, become lists with one
    for each row, as pipelines want them of the type, and the length, of the prompt; where `embeddings` are given
    there is no prompt, and texts stay as they are.
    """
    embedded = bool(embeddings(args))

    def of_rows(name: str, value: Any) -> Any:
        if not embedded and is_text(name) and value is not None:
            each = [value] if isinstance(value, str) else value
            return [each[row if len(each) > 1 else 0] for row in rows]
        axis = _prompt_axis(name)
        if isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == len(prompts):
            dealt = torch.tensor(rows, device=value.device)
            return value if len(prompts) == 1 and name in PICTURES else value.index_select(axis, dealt)
        if isinstance(value, list) and name.endswith("prompt_embeds") and len(value) == len(prompts):
            return [value[row] for row in rows]
        return value

    # Plain strings: some pipelines ask that all texts are of one type.
    given = args if embedded else {**args, "prompt": [str(prompt) for prompt in prompts]}
    return {name: of_rows(name, value) for name, value in given.items()}


def no_step_left(pipe: Any, inference_steps: int, args: Mapping[str, Any]) -> str:
    """The sentence for a `strength`, given or the pipeline's own, that leaves no step to run; empty if it leaves one.

    A pipeline that starts from a noised picture runs the last `strength` * `inference_steps` steps alone.
    """
    known = call_parameters(pipe)
    strength = args.get("strength", known["strength"].default) if "strength" in known else None
    if not isinstance(strength, int | float) or strength < 0 or int(inference_steps * strength):
        return ""
    return (
        f"A strength of {strength} leaves {type(pipe).__name__} none of its {inference_steps} steps: give a larger "
        "strength, or more steps."
    )


def explain_failure(
    pipe: Any, inference_steps: int, args: Mapping[str, Any], doubtful: Sequence[str], error: Exception
) -> str:
    """The sentence for `error` of a first call with `args`, most of which cannot be checked before.

    Those named in `doubtful`, or options, may be why. Empty where nothing that was given, or left out, can be the
    reason.
    """
    if reason := no_step_left(pipe, inference_steps, args):
        return reason
    known = call_parameters(pipe)
    missing = [name for name in PICTURES if name in known and args.get(name) is None]
    if not doubtful and not missing:
        return ""
    given = f" with {', '.join(doubtful)} as given" if doubtful else ""
    lacks = f"give {', '.join(missing)} too, from Python in pipe_args" if missing else ""
    mend = lacks or "change what does not suit it, or leave it out"
    return f"{type(pipe).__name__} does not run{given} ({first_line(error).rstrip('.')}): {mend}."
