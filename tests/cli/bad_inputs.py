"""A table of bad inputs: those of `bad_options` and of `bad_files`."""

from bad_files import wrong_configurations, wrong_models, wrong_pictures, wrong_prompts, wrong_tapes
from bad_options import wrong_names, wrong_numbers, wrong_options, wrong_outputs


def every_case() -> list[list[str]]:
    """All of the table."""
    kinds = (
        wrong_numbers,
        wrong_names,
        wrong_configurations,
        wrong_models,
        wrong_options,
        wrong_prompts,
        wrong_pictures,
        wrong_tapes,
        wrong_outputs,
    )
    return [case for kind in kinds for case in kind()]
