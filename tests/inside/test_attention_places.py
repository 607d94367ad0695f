"""Maps and windows of tokens in pixels; expected places are written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vitbench.errors import NotDefined
from vitbench.inside.attention_places import (
    Running,
    Site,
    across_map,
    check,
    covered,
    cut,
    every,
    grid_of,
    pitch_of,
    prefix_of,
    slid,
    spread,
    windowed,
)


class Holder(nn.Module):
    """A module with whatever attributes a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def site(*modules: tuple[str, nn.Module], queries: int = 4, keys: int = 4, extents: tuple[int, int] = (8, 8)) -> Site:
    running = tuple(Running(name, module, ()) for name, module in modules or (("", Holder()), ("attn", Holder())))
    return Site(running=running, call=0, before=0, queries=queries, keys=keys, extents=(1, *extents))


def test_a_map_shares_the_image_out() -> None:
    assert spread(site(extents=(8, 12)), (2, 3)) == ((2.0, 6.0), (2.0, 6.0, 10.0))


@pytest.mark.parametrize(("reduction", "step"), [(64, 64.0), (32, 56.0)])
def test_a_stride_that_a_model_states_is_taken_where_it_goes_with_the_map(reduction: int, step: float) -> None:
    model = Holder(
        feature_info=[{"module": "stages.0", "reduction": 2}, {"module": "stages.1", "reduction": reduction}]
    )
    rows, _ = spread(site(("", model), ("stages.1.attn", Holder()), extents=(224, 224)), (4, 4))
    assert rows[1] - rows[0] == step


def test_a_convolution_puts_its_tokens_at_the_centre_of_its_kernel() -> None:
    axes = ((2.0, 6.0, 10.0, 14.0),) * 2
    assert slid(axes, nn.Conv2d(1, 1, 2, 2)) == ((4.0, 12.0),) * 2
    assert slid(axes, nn.Conv2d(1, 1, 3, 2, 1)) == ((2.0, 10.0),) * 2
    assert slid(axes, nn.AvgPool2d(2)) == ((4.0, 12.0),) * 2
    assert slid(axes, None) == slid(axes, nn.Identity()) == axes
    assert every(axes, 3) == ((2.0, 14.0),) * 2


def test_the_pitch_is_that_from_one_token_to_the_next() -> None:
    assert pitch_of(((2.0, 10.0), (3.0,))) == (1.0, 8.0, 6.0)


def test_windows_of_a_map_that_is_padded() -> None:
    found = windowed(site(extents=(3, 3)), (3, 3), (2, 2))
    assert found.queries[0, :, 1:].tolist() == [[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]
    assert found.queries[1, ::2, 1:].tolist() == [[0.5, 2.5], [1.5, 2.5]]
    assert found.placed_keys.sum(-1).tolist() == [4, 2, 2, 1]
    assert found.grid == (1, 3, 3)


def test_windows_that_are_shifted_hold_regions_that_do_not_see_each_other() -> None:
    found = windowed(site(extents=(4, 4)), (4, 4), (2, 2), shift=(1, 1))
    assert found.queries[3, :, 1:].tolist() == [[3.5, 3.5], [3.5, 0.5], [0.5, 3.5], [0.5, 0.5]]
    assert found.allowed is not None
    assert found.allowed[0].all()
    assert torch.equal(found.allowed[3], torch.eye(4, dtype=torch.bool))


def test_strided_windows_reach_over_the_whole_map() -> None:
    found = windowed(site(extents=(4, 4)), (4, 4), (2, 2), strided=True)
    assert found.queries[1, :, 1:].tolist() == [[0.5, 1.5], [0.5, 3.5], [2.5, 1.5], [2.5, 3.5]]
    assert cut(torch.arange(4.0).view(2, 2, 1), (1, 2)).flatten(1).tolist() == [[0, 1], [2, 3]]


def test_queries_and_keys_that_do_not_go_with_a_map_are_refused() -> None:
    with pytest.raises(NotDefined, match="attn do not lie as known of its class: 4 queries and 4 keys, not 5 and 9"):
        across_map(site(), ((0.0, 1.0),) * 2, ((0.0, 1.0), (0.0, 1.0, 2.0, 3.0)), prefix=1)
    check(site(queries=5, keys=5), (2, 2), (2, 2), 1)


def test_the_grid_is_told_by_the_innermost_that_knows_it() -> None:
    inner = Holder(patch_embed=Holder(grid_size=(2, 3)), num_prefix_tokens=2)
    where = site(("", Holder(grid_size=(9, 9))), ("body", inner), ("body.attn", Holder()))
    assert grid_of(where) == (2, 3)
    assert prefix_of(where) == 2


@pytest.mark.parametrize("settings", [{"grid_size": None}, {"grid_size": (9, 9), "strict_img_size": False}])
def test_an_embedding_of_images_of_any_size_is_asked_for_its_grid(settings: dict[str, Any]) -> None:
    embedding = Holder(**settings, dynamic_feat_size=lambda extents: (extents[0] // 2, extents[1] // 4))
    assert grid_of(site(("", Holder(patch_embed=embedding)), ("attn", Holder()))) == (4, 2)


def test_a_grid_that_nobody_tells_is_not_guessed() -> None:
    with pytest.raises(NotDefined, match="Holder does not tell the grid of its tokens"):
        grid_of(site())
    assert prefix_of(site()) is None


def test_patches_cover_what_they_are_made_from() -> None:
    from timm.layers import PatchEmbed

    model = Holder(patch_embed=PatchEmbed(img_size=90, patch_size=14, embed_dim=1))
    assert covered(site(("", model), extents=(90, 90)), (6, 6)) == (84.0, 84.0)
    assert covered(site(extents=(90, 80)), (6, 6)) == (90.0, 80.0)
