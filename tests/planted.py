"""A comparison written by hand, with every verdict, for the tests of its reports."""

from __future__ import annotations

from vitbench.changes import Change, Comparison, PartChange, ranked

_SETTING = {"model": "vit_b16", "input_shape": "3x224x224", "batch_size": "8", "device": "cpu", "dtype": "fp32"}
_LARGE = _SETTING | {"batch_size": "64"}
_SWIN = _SETTING | {"model": "swin_t"}

CHANGES = (
    Change(
        setting=_SETTING,
        column="macs",
        heading="MACs",
        judged="exact",
        better="lower",
        verdict="regressed",
        before=15_430_946_816,
        after=15_430_946_817,
        ratio=15_430_946_817 / 15_430_946_816,
        note="one product more",
        parts=(
            PartChange(part="", column="macs", before=15_430_946_816, after=15_430_946_817),
            *(
                PartChange(part=f"blocks.{index}", column="macs", before=1_000_000, after=1_000_000 + index)
                for index in range(1, 9)
            ),
            PartChange(part="extra", column="macs", before=None, after=100),
        ),
    ),
    Change(
        setting=_LARGE,
        column="throughput_per_s",
        heading="Inputs/s",
        judged="timed",
        better="higher",
        verdict="regressed",
        before=512.25,
        after=470.5,
        ratio=0.9185,
        low=0.91,
        high=0.927,
        threshold=0.03,
        p_value=0.0001,
        note="confirmed with fresh workers",
        rounds=(*((0.91, 0.915, 0.92, 0.92, 0.93) for _ in range(4)), (2.0,)),
    ),
    Change(
        setting=_SWIN,
        column="params",
        heading="Params",
        judged="exact",
        better="lower",
        verdict="regressed",
        before=28_288_354,
        after=28_300_000,
        ratio=28_300_000 / 28_288_354,
        expected="a wider head, until 2027-01-01",
    ),
    Change(setting=_SWIN, column="", heading="", judged="exact", better=None, verdict="missing", note="no such row"),
    Change(
        setting=_SWIN,
        column="latency_median_ms",
        heading="Median",
        judged="timed",
        better="lower",
        verdict="suspect",
        before=12.3456,
        after=12.9,
        ratio=1.045,
        low=1.012,
        high=1.08,
        threshold=0.03,
        note="the machine was too noisy",
    ),
    Change(
        setting=_SETTING,
        column="compile_s",
        heading="Compile",
        judged="timed",
        better="lower",
        verdict="incomparable",
        before=30.0,
        after=12.0,
        ratio=0.4,
        note="cpu, cores and torch differ",
    ),
    Change(
        setting=_LARGE,
        column="forward_median_ms",
        heading="Forward",
        judged="timed",
        better="lower",
        verdict="inconclusive",
        before=100.0,
        after=100.001,
        ratio=1.00001,
        low=0.95,
        high=1.06,
        threshold=0.03,
        more=12,
        rounds=((0.97, 1.0, 1.02),),
    ),
    Change(
        setting=_SETTING,
        column="predicted_peak_bytes",
        heading="Peak",
        judged="exact",
        better="lower",
        verdict="improved",
        before=362_807_296,
        after=181_403_648,
        ratio=0.5,
    ),
    Change(
        setting=_SETTING,
        column="values",
        heading="Values",
        judged="near",
        better="equal",
        verdict="regressed",
        before=(0.1, 0.2, 0.3, 0.4),
        after=(0.1, 0.2, 0.35, 0.4),
        note="0.0913 of the first's length apart",
    ),
    Change(setting=_LARGE, column="", heading="", judged="exact", better=None, verdict="new"),
    Change(
        setting=_SETTING,
        column="params",
        heading="Params",
        judged="exact",
        better="lower",
        verdict="unchanged",
        before=86_567_656,
        after=86_567_656,
        ratio=1.0,
    ),
)

COMPARISON = Comparison(
    base="main",
    head="wider-head",
    changes=ranked(CHANGES),
    differences={"torch": ("2.13.0", "2.14.0"), "cpu": ("Xeon 8375C", "EPYC 7763")},
    environment={"torch": "2.14.0", "timm": "1.0.31", "cpu": "EPYC 7763", "cores": "2"},
    notes=("Of 3 timed columns the false discovery rate is held at 5 %.",),
    commands=("vitbench sweep suite.toml --output head", "vitbench compare base head"),
)

HOSTILE = (
    "<script>alert(1)</script> </details> <!-- x -->",
    "a|b `c` ``` @octocat #1 GH-2 owner/repo#3 https://evil.example www.evil.example [x](http://y) ![i](//z) $x$",
    "- item\n# heading\n---\n1. one",
    "\x1b[31mred\x07\x00 \ud800 \u202egnp.exe \ufffe ]]> &amp; \"q\" 'r'",
    "::error::injected %0A",
)


def hostile(text: str) -> Comparison:
    """Gives a comparison that has a text wherever others may have put one."""
    setting = {"model": text, "input_shape": text, text: text}
    part = PartChange(part=text, column="macs", before=1, after=2)
    change = Change(
        setting=setting,
        column="macs",
        heading=text,
        judged="exact",
        better="lower",
        verdict="regressed",
        before=1,
        after=2,
        ratio=2.0,
        note=text,
        expected=text,
        parts=(part,),
    )
    other = Change(
        setting=setting,
        column="preprocessing",
        heading=text,
        judged="exact",
        better="equal",
        verdict="regressed",
        before=text,
        after=f"{text} {text}",
        note=text,
    )
    return Comparison(
        base=text,
        head=text,
        changes=(other, change),
        differences={text: (text, text)},
        environment={text: text},
        notes=(text,),
        commands=(text,),
    )
