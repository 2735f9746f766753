"""Libraries that chat on the terminal where a person wants to see the search."""

import logging


def quiet() -> None:
    """No loading bars, and no advice about image processors that are not used."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
