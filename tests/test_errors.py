"""Errors are for the user, and travel between processes."""

from __future__ import annotations

import pickle

from vitbench.errors import BadInput, UnknownName, one_line


def test_an_unknown_name_suggests_near_ones() -> None:
    error = UnknownName("model", "swim_b", ["swin_b", "swin_t", "vit_b16"])
    assert error.near[0] == "swin_b"
    assert str(error).startswith("There is no model named 'swim_b'. Did you mean swin_b")


def test_an_unknown_name_with_nothing_near_gives_the_hint() -> None:
    assert str(UnknownName("family", "zzz", ["swin"], hint="Known are swin.")).endswith("Known are swin.")


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnknownName("model", "swim_b", ["swin_b"])))  # noqa: S301  # our own bytes
    assert isinstance(error, UnknownName)
    assert error.near == ("swin_b",)
    assert "swin_b" in str(error)


def test_one_line_keeps_the_kind_of_a_stranger() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(BadInput("A sentence.")) == "A sentence."
