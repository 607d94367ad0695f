"""Selecting models, and rows for what goes wrong. Whole runs are tested through the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench import bench, catalog
from vitbench.errors import BadInput


def test_names_are_taken_in_order_and_once() -> None:
    assert bench.select(["swin_b", "swin_?"]) == ["swin_b", "swin_t", "swin_s", "swin_l"]
    assert bench.select([], families=["regnet", "pvt"])[:2] == ["regnety_16gf", "pvt_tiny"]
    assert bench.select([], everything=True) == list(catalog.VARIANTS)


def test_a_factorys_address_is_no_glob() -> None:
    assert bench.select(["my.nets:small"]) == ["my.nets:small"]


def test_timms_models_leave_out_the_native_ones() -> None:
    from vitbench import models

    models.register()
    names = bench.select_timm("*")
    assert len(names) > 1360
    assert "resnet50" in names
    assert "cct_2_3x2_32" not in names
    with pytest.raises(BadInput, match="No model of timm matches"):
        bench.select_timm("zzz*")


def test_a_forward_pass_that_raises_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_for_tests.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        raise ZeroDivisionError('deep inside\\nsecond line')\n"
    )
    monkeypatch.chdir(tmp_path)
    row = bench.count_one(bench.Request(name="raising_for_tests:Net", input_shape=(3, 4, 4)))
    assert row.status == "failed"
    assert row.note == "raising_for_tests:Net cannot take input 3x4x4: ZeroDivisionError: deep inside."


def test_a_factory_that_states_its_input_needs_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stating_for_tests.py").write_text(
        "import timm\ndef net(img_size=32):\n    return timm.create_model('resnet10t', num_classes=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    row = bench.count_one(bench.Request(name="stating_for_tests:net"))
    assert row.setting.input_shape == (3, 176, 176)
    row = bench.count_one(bench.Request(name="stating_for_tests:net", img_size=(64, 96)))
    assert row.setting.input_shape == (3, 64, 96)


def test_every_row_carries_the_environment_and_the_published_figures() -> None:
    (row,) = bench.count([bench.Request(name="swin_b", img_size=(384, 384))])
    assert row.environment is not None
    assert row.findings["published"].published_macs == 47e9
    assert row.note == "at this size it is swin_b_384 (window 12)"


def test_timms_model_is_meant_where_the_catalogs_is_another() -> None:
    """The efficientnet_l2 of timm has PyTorch's padding; the catalog's has TensorFlow's, with which the weights were trained."""
    ours = bench.count_one(bench.Request(name="efficientnet_l2"))
    theirs = bench.count_one(bench.Request(name="efficientnet_l2", of_timm=True))
    assert "published" in ours.findings
    assert "published" not in theirs.findings
    # TensorFlow's pads unevenly, before the convolution.
    assert "constant_pad_nd" in ours.findings["flops"].uncounted
    assert "constant_pad_nd" not in theirs.findings["flops"].uncounted
    assert "published" in bench.count_one(bench.Request(name="resnet50", of_timm=True)).findings


def test_a_model_whose_own_size_its_patches_do_not_tile_is_counted_as_it_is() -> None:
    """SigLIP SO400M at 384 px has 27 x 27 patches of 14 pixels: the last 6 rows and columns are left out by design."""
    row = bench.count_one(bench.Request(name="vit_so400m_patch14_siglip_384", of_timm=True))
    assert row.status == "ok"
    assert row.findings["flops"].activations > 27 * 27 * 1152
