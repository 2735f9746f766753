"""How well a text is drawn: a reader of text, RapidOCR, tells what a picture says."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError, explained


class Line(NamedTuple):
    """A line that was read, and how sure the reader is of it, in [0, 1]."""

    text: str
    confidence: float


Reader = Callable[[NDArray[np.uint8]], Sequence[Line]]
"""The lines of text in a picture [H, W, 3] (red, green, blue), from top to bottom."""

_QUOTED: Final = re.compile(
    "|".join(
        [
            r'"([^"]*)"',
            r"“([^”“]*)[”“]",
            r"„([^”“]*)[”“]",
            r"«([^»]*)»",
            r"「([^」]*)」",
            # An apostrophe within a word opens and closes nothing.
            r"(?<!\w)'(.+?)'(?!\w)",
            r"(?<!\w)‘(.+?)’(?!\w)",
        ]
    )
)
_SIDE: Final = 320  # smaller pictures are enlarged to it; detection looks at larger ones as they are
_DOUBT: Final = 0.01  # what a reader that is not sure at all takes off a score
_ONE_LINE: Final = 64  # below it a picture has room for one line, which detection would often miss


@dataclass
class OcrVerifier:
    """Scores how well the text that the prompt asks for is drawn, by what `read` reads.

    The text is what the prompt has in quotation marks, else the name of its class (a ClassLabel).
    """

    read: Reader
    name: str = "ocr"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score float64 [B], in [0, 1], of `images` [B, 3, H, W] in [0, 1].

        It is 1 - d(text, line) / max(len(text), len(line)), d the edit distance, for the line read that matches best,
        lines next to each other taken together too; the mean over texts, if a prompt asks for several. Case and white
        space do not count. Up to 1% of it is taken off where the reader is not sure of the line, so that of pictures
        which are read alike the clearest is best. Raises DiffscaleError for a prompt that asks for no text.
        """
        asked = [asked_texts(prompt) for prompt in prompts]
        lines = [self.read(_pixels(image)) for image in images]
        scores = [
            sum(match(text, read) for text in texts) / len(texts) for texts, read in zip(asked, lines, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64)


def ocr() -> OcrVerifier:
    """How well the text in the prompt's quotation marks, or its class, is drawn: 0 to 1.

    Needs `pip install 'diffscale[ocr]'`. It reads on the CPU, with as many threads as torch has, by the weights that
    come with RapidOCR (PP-OCRv6); nothing is fetched.
    """
    return OcrVerifier(RapidReader())


class RapidReader:
    """Reads pictures by RapidOCR; raises DiffscaleError if it is not installed, or without its weights."""

    def __init__(self) -> None:
        with explained("The verifier ocr needs RapidOCR: pip install 'diffscale[ocr]'.", ImportError):
            import onnxruntime  # noqa: F401  # RapidOCR asks for it only when it reads
            import rapidocr
        folder = Path(rapidocr.__file__).parent / "models"
        settings: dict[str, Any] = {
            # A line that stands on its head is not drawn well, and a 6 is no 9.
            "Global.use_cls": False,
            "Global.log_level": "critical",
            "Det.limit_side_len": _SIDE,
            # Given by their paths, weights that are missing are an error; else they would be fetched.
            "Det.model_path": _weights(folder, "det"),
            "Rec.model_path": _weights(folder, "rec"),
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
        self._engine = rapidocr.RapidOCR(params=settings)

    def __call__(self, pixels: NDArray[np.uint8]) -> list[Line]:
        """The lines of text in a picture [H, W, 3], from top to bottom."""
        whole = min(pixels.shape[:2]) < _ONE_LINE
        blue_first = np.ascontiguousarray(_enlarged(pixels)[..., ::-1])
        read = self._engine(blue_first, use_det=not whole, use_cls=False, use_rec=True)
        texts, confidences = (getattr(read, name, None) or () for name in ("txts", "scores"))
        return [Line(text, float(confidence)) for text, confidence in zip(texts, confidences, strict=True)]


def asked_texts(prompt: str) -> list[str]:
    """The texts that a prompt has in quotation marks, straight or typographic, else the name of its class.

    Raises DiffscaleError if there is none.
    """
    texts = [text for groups in _QUOTED.findall(prompt) for text in groups if _essence(text)]
    if not texts and hasattr(prompt, "class_id"):
        texts = [str(prompt)]
    if not texts:
        raise DiffscaleError(
            f"The verifier ocr reads text, but {str(prompt)!r} asks for none: put the text in quotation marks, as in "
            "'a sign that says \"open\"', or choose another verifier."
        )
    return texts


def match(text: str, lines: Sequence[Line]) -> float:
    """The score of `text` by the line, or lines in a row, that match it best, see `OcrVerifier`; in [0, 1]."""
    wanted, best = _essence(text), 0.0
    for first in range(len(lines)):
        together = ""
        for last in range(first, len(lines)):
            together += _essence(lines[last].text)
            alike = 1 - edit_distance(wanted, together) / max(len(wanted), len(together))
            sure = min(line.confidence for line in lines[first : last + 1])
            best = max(best, alike * (1 - _DOUBT * (1 - sure)))
            if len(together) >= len(wanted):
                break
    return best


def edit_distance(a: str, b: str) -> int:
    """The fewest letters to insert, delete or replace that make `b` of `a` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def _essence(text: str) -> str:
    """The text without case, white space and variants of width."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 0).numpy()


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its smaller side `_SIDE`, if that is less."""
    factor = _SIDE / min(pixels.shape[:2])
    if factor <= 1:
        return pixels
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    size = [round(side * factor) for side in pixels.shape[:2]]
    larger = F.interpolate(picture, size=size, mode="bicubic", align_corners=False)
    return larger[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy()


def _weights(folder: Path, kind: str) -> str:
    found = sorted(folder.glob(f"*_{kind}_*.onnx"))
    if not found:
        raise DiffscaleError(
            f"RapidOCR has no weights in {folder}: install a version that brings them, pip install 'rapidocr>=3.10'."
        )
    return str(found[0])
