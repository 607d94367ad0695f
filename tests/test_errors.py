"""Errors are for the user, and travel between processes."""

from __future__ import annotations

import pickle

from vitbench.errors import BadInput, UnknownName, one_line


def test_an_unknown_name_suggests_near_ones() -> None:
    error = UnknownName("model", "swim_b", ["swin_b", "swin_t", "vit_b16"])
    assert error.near[0] == "swin_b"
    assert str(error).startswith("There is no model named 'swim_b'. Did you mean swin_b")


def test_a_name_with_its_beginning_left_out_is_near() -> None:
    error = UnknownName("model", "cvt_6_4", ["cct_6_3x2_32", "compact_cvt_6_4_32", "cvt_13", "cvt_21"])
    assert error.near[0] == "compact_cvt_6_4_32"
    assert UnknownName("model", "cvt_12", ["compact_cvt_6_4_32", "cvt_13"]).near == ("cvt_13",)
    assert UnknownName("model", "16", ["gemma4_vit_167m", "vit_b16"]).near == ()
    assert UnknownName("model", "compact_cvt_13", ["compact_cvt_6_4_32", "cvt_13"]).near[0] == "cvt_13"


def test_an_unknown_name_with_nothing_near_gives_the_hint() -> None:
    assert str(UnknownName("family", "zzz", ["swin"], hint="Known are swin.")).endswith("Known are swin.")


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnknownName("model", "swim_b", ["swin_b"])))  # noqa: S301  # our own bytes
    assert isinstance(error, UnknownName)
    assert error.near == ("swin_b",)
    assert "swin_b" in str(error)


def test_one_line_keeps_the_kind_of_a_stranger() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(ValueError("A sentence.")) == "ValueError: A sentence"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(BadInput("A sentence.")) == "A sentence."


def test_a_line_that_announces_the_next_is_joined_with_it() -> None:
    """As torch.compile words its errors."""
    error = RuntimeError("backend='inductor' raised:\nTypeError: no kernel for this.\n\nSet TORCHDYNAMO_VERBOSE=1")
    assert one_line(error) == "RuntimeError: backend='inductor' raised: TypeError: no kernel for this"
    assert one_line(ValueError("only this:")) == "ValueError: only this:"
    assert one_line(ValueError()) == "ValueError"
