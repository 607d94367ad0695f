"""False discoveries among many times of one report."""

from __future__ import annotations

from dataclasses import replace

from vitbench.changes import Change, Verdict
from vitbench.judging.discoveries import corrected, discoveries


def test_discoveries_are_benjamini_and_hochbergs() -> None:
    """By hand: sorted, the k-th of five is held against k x 5 % / 5; 0.01 and 0.019 pass, 0.035 > 0.03 does not."""
    assert discoveries([0.035, 0.01, 0.5, 0.019, 0.9]) == [False, True, False, True, False]
    assert discoveries([]) == []


def test_their_own_example() -> None:
    """Benjamini and Hochberg (1995), section 3.2: four of fifteen hold at 5 %."""
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p_values += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert discoveries(p_values) == [True] * 4 + [False] * 11


def timed(p_value: float | None, verdict: Verdict, note: str = "") -> Change:
    setting = {"model": "vit_b16"}
    return Change(
        setting=setting,
        column="throughput_per_s",
        heading="Inputs/s",
        judged="timed",
        better="higher",
        verdict=verdict,
        note=note,
        p_value=p_value,
    )


def test_what_may_be_chance_among_many_is_suspect() -> None:
    """Benjamini and Hochberg: 0.04 is one of four, so that it had to be below 0.05 / 4; 0.001 is."""
    one, missing = timed(0.04, "regressed", "far apart"), timed(None, "missing")
    rest = [timed(p_value, "unchanged") for p_value in (0.3, 0.5, 0.9)]
    assert corrected([one, missing]) == ([one, missing], ())
    found, notes = corrected([missing, one, *rest])
    assert [each.verdict for each in found] == ["missing", "suspect", "unchanged", "unchanged", "unchanged"]
    assert found[1].note == "may be chance among 4 comparisons; far apart"
    assert notes == ("Of 4 comparisons of times, the false discovery rate is held at 5% (Benjamini-Hochberg).",)
    sure = replace(one, p_value=0.001)
    assert corrected([sure, *rest])[0][0] == sure
