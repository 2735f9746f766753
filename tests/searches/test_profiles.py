"""The file of a profile is read as it was written, and what is wrong with one is told in a sentence."""

import json

import pytest

from diffscale._util.errors import DiffscaleError
from diffscale.searches.looks import Look
from diffscale.searches.profiles import FORMAT, read_profile

RIGHT = {
    "format": FORMAT,
    "steps": 20,
    "looks": [{"steps": 5, "via": "", "on_the_way": False}, {"steps": 8, "via": "", "on_the_way": True}],
    "matrix": [[1.0, 0.5, 0.7], [0.5, 1.0, 0.8], [0.7, 0.8, 1.0]],
    "seconds": {"step": 0.1, "decode": 0.02, "verify": 0.03},
    "about": {"model": "m"},
}


def written(path, **changed):
    path.write_text(json.dumps(RIGHT | changed))
    return path


def test_a_profile_is_read(tmp_path):
    profile = read_profile(written(tmp_path / "p.json"))
    assert profile.agreement.looks == (Look(5), Look(8, on_the_way=True)) and profile.agreement.shares == (0.25, 0.4)
    assert [list(row) for row in profile.agreement.matrix] == RIGHT["matrix"]
    assert (profile.steps, profile.seconds) == (20, RIGHT["seconds"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "diffscale profile 0"}, "Mend format in "),
        ({"steps": 0}, "Mend steps in "),
        ({"steps": 8}, "Mend looks in .*after 8 of 8 steps"),
        ({"looks": []}, "Mend looks in "),
        ({"looks": [{"steps": "few"}]}, r"Mend looks\.0\.steps in "),
        ({"looks": [{"steps": 3, "by": "x"}]}, r"Mend looks\.0\.by in "),
        ({"matrix": [[1.0]]}, "Mend matrix in .*3 rows of 3 numbers"),
        ({"matrix": [[1.0, 0.5, 0.7], [0.5, 1.0, 0.8], [0.7, 0.9, 1.0]]}, "Mend matrix in .*symmetric"),
        ({"matrix": [[1.0, 0.5, 2.0], [0.5, 1.0, 0.8], [0.7, 0.9, 1.0]]}, r"Mend matrix\.0\.2 in "),
        ({"matrix": [[1.0, 0.5, float("nan")]]}, r"Mend matrix\.0\.2 in "),
        ({"seconds": {"step": 1.0}}, "Mend seconds in .*decode, step, verify, and has step"),
        ({"seconds": RIGHT["seconds"] | {"step": float("inf")}}, r"Mend seconds\.step in "),
        ({"more": 1}, "Mend more in "),
    ],
)
def test_what_is_wrong_with_a_profile_is_told(tmp_path, changed, said):
    with pytest.raises(DiffscaleError, match=said):
        read_profile(written(tmp_path / "p.json", **changed))


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff\xfe", b"[" * 5000])
def test_a_file_that_is_no_profile_is_refused(tmp_path, content):
    path = tmp_path / "p.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DiffscaleError, match=r"p\.json must hold one JSON object"):
        read_profile(path)
