"""The verb: a model and images in, findings out, as few passes as possible, and nothing lost when one of them ends early."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import tiny
from vitbench import analyze, build
from vitbench.analyses import ANALYSES, attention_distance, cka, position_similarity
from vitbench.analyze import Ask, Options, Outcome, Subject
from vitbench.errors import BadInput, NotSupported, UnknownName
from vitbench.inputs import images
from vitbench.inputs.images import Images
from vitbench.records import AnalysisSetting, columns
from vitbench.running import device

PICTURES = 5


@pytest.fixture(autouse=True)
def _memory_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of the process, and would be that of all tests after these."""
    monkeypatch.setattr(device, "limit_memory", lambda: None)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    for number in range(PICTURES):
        coarse = np.random.default_rng(number).integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def acts() -> Iterator[Callable[[Callable[[Tensor], object]], None]]:
    """Puts what an `acting` model does before each pass."""
    yield lambda act: tiny.DOING.append(act)
    tiny.DOING.clear()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Whoever runs the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def small(name: str = "vit", **options: Any) -> Subject:
    return analyze.subject(Ask(**{"model": f"tests.tiny:{name}", "weights": "random", "device": "cpu", **options}))


def opened(subject: Subject, album: Path, limit: int | None = None) -> Images:
    return images.open_images(str(album), analyze.preprocessing(subject), limit=limit)


def look(subject: Subject, names: Sequence[str], album: Path, **options: Any) -> dict[str, Outcome]:
    found = analyze.look(subject, names, opened(subject, album), options=Options(**options))
    return {outcome.analysis: outcome for outcome in found}


def rows_of(outcome: Outcome) -> tuple[Any, ...]:
    """Gives the rows of what was found."""
    assert outcome.finding is not None, outcome.refusal
    found: tuple[Any, ...] = outcome.finding.rows
    return found


# What is looked into


def test_a_subject_says_what_it_is() -> None:
    subject = small(seed=3, dtype="bf16")
    assert subject.title == "tests.tiny:vit (random weights)"
    assert subject.setting == AnalysisSetting(
        model="tests.tiny:vit", input_shape=(3, 32, 32), weights="random weights (seed 3)", device="cpu", dtype="bf16"
    )
    assert next(subject.model.parameters()).dtype == torch.bfloat16
    assert not subject.takes_clips
    assert small("clips").takes_clips


def test_a_size_is_in_the_title_and_in_the_model() -> None:
    subject = small(img_size=(48, 32))
    assert subject.title == "tests.tiny:vit (random weights, 48x32)"
    assert subject.setting.input_shape == (3, 48, 32)
    assert small("clips", num_frames=6).setting.input_shape == (3, 6, 32, 32)


def test_another_input_of_a_model_of_the_catalog_is_a_size_that_it_is_built_for() -> None:
    """vit_lite_2_4_32 has patches of 4 x 4."""
    subject = analyze.subject(
        Ask(model="vit_lite_2_4_32", weights="random", input_shape=(3, 40, 24), device="cpu", batch_size=1)
    )
    assert subject.setting.input_shape == (3, 40, 24)
    assert subject.title == "vit_lite_2_4_32 (random weights, 40x24)"
    with torch.no_grad():
        subject.model.eval()(torch.zeros(1, 3, 40, 24))
    own = analyze.subject(Ask(model="vit_lite_2_4_32", weights="random", input_shape=(3, 32, 32), device="cpu"))
    assert own.title == "vit_lite_2_4_32 (random weights)"


def test_the_size_of_a_factory_goes_before_the_input_that_was_stated() -> None:
    subject = small("vit", input_shape=(3, 32, 32), img_size=(64, 64))
    assert subject.setting.input_shape == (3, 64, 64)


def test_a_factory_that_states_no_input_has_weights_all_the_same(album: Path) -> None:
    subject = small("nameless")
    (found,) = analyze.look(subject, ["posemb-similarity"])
    assert rows_of(found)
    with pytest.raises(BadInput, match="give it with --input"):
        _ = subject.takes_clips
    (row, *_) = analyze.rows(found)
    assert row["input_shape"] == ()


def test_weights_of_a_file_are_named_and_drop_the_classifier_of_a_catalog_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    state = build.create_model("vit_lite_2_4_32", num_classes=7, seed=5).state_dict()
    torch.save(state, path)
    subject = analyze.subject(Ask(model="vit_lite_2_4_32", weights=str(path), device="cpu"))
    assert subject.title == "vit_lite_2_4_32 (mine.pth)"
    assert subject.setting.weights == "file mine.pth"
    loaded = subject.model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    assert len(loaded) == len(state) - 2


def test_what_cannot_be_is_told_before_anything_is_computed() -> None:
    for ask, error in (
        (Ask(model="vit_b61"), UnknownName),
        (Ask(model="tests.tiny:nobody"), BadInput),
        (Ask(model="vit_b16", num_frames=4), NotSupported),
        (Ask(model="vit_b16", input_shape=(1, 224, 224)), BadInput),
    ):
        with pytest.raises(error):
            analyze.check(ask)
    analyze.check(Ask(model="vit_b16"))


# Findings


def test_findings_are_those_of_the_functions(album: Path) -> None:
    subject = small()
    found = look(subject, ["attn-distance", "posemb-similarity"], album)
    (batch,) = opened(subject, album).batches(PICTURES)
    assert rows_of(found["attn-distance"]) == attention_distance.analyze(subject.model, [batch.tensor]).rows
    assert rows_of(found["posemb-similarity"]) == position_similarity.analyze(subject.model).rows
    setting = found["attn-distance"].subject.setting
    assert (setting.inputs, setting.batch_size, setting.source) == (PICTURES, 4, str(album))
    assert setting.preprocessing == "resize 32 bicubic, centre crop 32x32, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    setting = found["posemb-similarity"].subject.setting
    assert (setting.inputs, setting.batch_size, setting.source, setting.preprocessing) == (0, 1, "", "")


def test_a_row_has_setting_numbers_and_environment(album: Path) -> None:
    found = look(small(), ["attn-distance"], album)["attn-distance"]
    (row, *others) = analyze.rows(found)
    assert len(others) + 1 == len(rows_of(found))
    names = [*columns(found.subject.setting), *columns(rows_of(found)[0]), "status", "note"]
    assert list(row)[: len(names)] == names
    assert all(name.startswith("environment_") for name in list(row)[len(names) :])
    assert row["distance_px"] == rows_of(found)[0].distance_px


def test_no_column_of_an_analysis_hides_one_of_its_setting() -> None:
    setting = set(columns(AnalysisSetting(model="a", input_shape=(3, 2, 2)))) | {"status", "note"}
    records = [
        record
        for entry in ANALYSES
        for record in vars(ANALYSES.load(entry.name)).values()
        if is_dataclass(record) and any("heading" in item.metadata for item in fields(record))
    ]
    assert len(records) >= len(ANALYSES.names)
    for record in records:
        assert not setting & {item.name for item in fields(record)}, record


def test_what_is_not_defined_is_an_outcome_with_the_reason(album: Path) -> None:
    found = look(small("convolutions"), ANALYSES.names, album)
    refused = {name: outcome.refusal for name, outcome in found.items() if outcome.finding is None}
    assert set(found) == set(ANALYSES.names)
    assert set(found) - set(refused) == {"embedding-filters", "cka", "feature-maps", "receptive-field"}
    assert refused["attn-rollout"] == (
        "attn-rollout is not defined for tests.tiny:convolutions: it has no softmax attention. "
        "Try: cka, receptive-field, feature-maps."
    )


def test_what_one_analysis_cannot_do_with_the_inputs_does_not_cost_the_others(album: Path) -> None:
    """CKA needs four images, and random tables have no before and after; the others need neither."""
    subject = small(img_size=(48, 48))
    found = {
        outcome.analysis: outcome
        for outcome in analyze.look(subject, ANALYSES.names, opened(subject, album, limit=2), options=Options())
    }
    assert "needs batches of 4 images or more" in found["cka"].refusal
    assert "drawn anew" in found["posemb-similarity"].refusal
    assert rows_of(found["feature-maps"])
    assert rows_of(found["receptive-field"])


def test_without_images_what_needs_them_says_so() -> None:
    with pytest.raises(BadInput, match="--images DIR"):
        list(analyze.look(small(), ["attn-distance"]))


# Passes


def passes(acts: Callable[[Callable[[Tensor], object]], None]) -> list[int]:
    counted: list[int] = []
    acts(lambda x: counted.append(len(x)))
    return counted


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["posemb-similarity", "embedding-filters"], []),
        (["attn-distance", "attn-entropy"], [4, 1]),
        # token-similarity refuses at sight, so that all others still have one pass; the gradients have one an image.
        (ANALYSES.names, [4, 1, 1, 1, 1, 1, 1]),
    ],
    ids=len,
)
def test_one_pass_serves_all(
    names: Sequence[str], expected: list[int], album: Path, acts: Callable[[Callable[[Tensor], object]], None]
) -> None:
    counted = passes(acts)
    look(small("acting"), names, album)
    assert counted == expected


def test_a_refusal_in_the_pass_costs_two_batches(
    album: Path, acts: Callable[[Callable[[Tensor], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in which it showed, and the one in which it was found out that it was attention: then the others have theirs."""
    counted = passes(acts)
    monkeypatch.setattr("vitbench.inside.attention_sites.of", lambda _: None)  # no class is known
    found = look(small("acting", batch_size=2), ["attn-distance", "attn-rollout", "attn-entropy", "cka"], album)
    assert counted == [2, 2, 2, 2, 1]
    assert {name for name, outcome in found.items() if "is not registered" in outcome.refusal} == {
        "attn-distance",
        "attn-rollout",
        "attn-entropy",
    }


def test_the_batch_size_changes_no_number(album: Path) -> None:
    found = [look(small(batch_size=size), ["attn-distance"], album)["attn-distance"] for size in (1, 3, 5)]
    assert [one.subject.setting.batch_size for one in found] == [1, 3, 5]
    for one, other in zip(rows_of(found[0]), rows_of(found[2]), strict=True):
        assert one.distance_px == pytest.approx(other.distance_px, abs=1e-5)
        assert one.sem_px == pytest.approx(other.sem_px, abs=1e-5)


def test_auto_is_halved_while_memory_is_predicted_not_to_hold_it(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the memory that is free, 0.6 may be used; what a pass of some inputs takes is asked of the prediction itself."""
    from vitbench.counters import lifetimes
    from vitbench.records import RunSetting

    subject = small()
    needed = {}
    for batch in (4, 2, 1):
        setting = RunSetting(model=subject.ask.model, input_shape=(3, 32, 32), batch_size=batch)
        peak = lifetimes.peak(subject.model, setting)
        needed[batch] = (peak.peak_bytes - peak.weights_bytes) / 0.6
    for free, expected in ((needed[4] + 2, 4), (needed[4] - 2, 2), (needed[2] - 2, 1), (0, 1), (None, 4)):
        monkeypatch.setattr(device, "free", lambda _, free=free: free)
        assert look(subject, ["attn-entropy"], album)["attn-entropy"].subject.setting.batch_size == expected


def test_where_memory_cannot_be_predicted_batches_are_small(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.counters import lifetimes

    def unknown(*_: object) -> None:
        raise ValueError("no shape")

    monkeypatch.setattr(lifetimes, "peak", unknown)
    found = look(small(), ["attn-entropy"], album)["attn-entropy"]
    assert rows_of(found)
    assert found.subject.setting.batch_size == 4


def test_a_factorys_model_is_taken_as_it_comes_and_the_rows_say_so() -> None:
    assert small().setting.weights == "random weights (seed 0)"
    asked = Ask(model="tests.tiny:vit", weights="pretrained")
    found = analyze.subject(asked)
    assert found.setting.weights == "as its factory gives them"
    assert found.title == "tests.tiny:vit"


# Errors


def out_of_memory(_: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def failing(_: Tensor) -> None:
    raise ZeroDivisionError("deep inside")


def test_memory_that_runs_out_says_what_helps(album: Path, acts: Callable[[Callable[[Tensor], object]], None]) -> None:
    acts(out_of_memory)
    with pytest.raises(BadInput, match="batches of 4: give a smaller --batch-size, or a smaller --img-size"):
        look(small("acting"), ["attn-distance"], album)
    (alone,) = look(small("acting"), ["receptive-field"], album).values()
    assert alone.refusal == "Memory ran out with batches of 1: give a smaller --img-size."


def test_what_a_model_raises_is_the_answer(album: Path, acts: Callable[[Callable[[Tensor], object]], None]) -> None:
    acts(failing)
    said = "tests.tiny:acting cannot take input 3x32x32: ZeroDivisionError: deep inside."
    with pytest.raises(BadInput, match=said):
        look(small("acting", batch_size=4), ["attn-distance"], album)
    (alone,) = look(small("acting"), ["receptive-field"], album).values()
    assert alone.refusal == said
    first, second = small("vit"), small("acting")
    with pytest.raises(BadInput, match="tests.tiny:vit cannot take input 3x32x32 or tests.tiny:acting cannot"):
        list(analyze.compared(first, second, (opened(first, album), opened(second, album)), options=Options()))


# Ctrl-C


def pressed_at(number: int) -> Callable[[Tensor], None]:
    """Gives what presses Ctrl-C in the pass of that number."""
    count = [0]

    def press(_: Tensor) -> None:
        count[0] += 1
        if count[0] == number:
            signal.raise_signal(signal.SIGINT)

    return press


def until_interrupted(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}

    def gather() -> None:
        for outcome in outcomes:
            found[outcome.analysis] = outcome

    with pytest.raises(KeyboardInterrupt):
        gather()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return found


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_pass_and_what_was_seen_is_given(
    album: Path, acts: Callable[[Callable[[Tensor], object]], None]
) -> None:
    """In the second batch of two, which is finished, so that all layers have seen the same four images."""
    acts(pressed_at(2))
    subject = small("acting", batch_size=2)
    names = ["posemb-similarity", "attn-distance", "feature-maps", "cka", "receptive-field"]
    found = until_interrupted(analyze.look(subject, names, opened(subject, album)))
    assert set(found) == {*names} - {"receptive-field"}
    assert found["attn-distance"].subject.setting.inputs == 4
    assert {row.images for row in rows_of(found["feature-maps"])} == {4}
    tiny.DOING.clear()
    (whole,) = analyze.look(subject, ["attn-distance"], opened(subject, album, limit=None))
    (four,) = [attention_distance.analyze(subject.model, first_four(subject, album))]
    assert rows_of(found["attn-distance"]) == four.rows != rows_of(whole)
    assert "needs batches of 4" in found["cka"].refusal  # it had two batches of two


def first_four(subject: Subject, album: Path) -> list[Tensor]:
    return [batch.tensor for batch in opened(subject, album).batches(2)][:2]


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_at_once(album: Path, acts: Callable[[Callable[[Tensor], object]], None]) -> None:
    """Of the second batch nothing is kept, and of the first all."""

    def twice(x: Tensor) -> None:
        press(x)
        press_again(x)

    press, press_again = pressed_at(2), pressed_at(2)
    acts(twice)
    subject = small("acting", batch_size=2)
    found = until_interrupted(analyze.look(subject, ["attn-distance"], opened(subject, album)))
    assert found["attn-distance"].subject.setting.inputs == 2


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_before_anything_was_seen_gives_nothing(
    album: Path, acts: Callable[[Callable[[Tensor], object]], None]
) -> None:
    press, press_again = pressed_at(1), pressed_at(1)
    acts(press)
    acts(press_again)
    subject = small("acting", batch_size=2)
    assert until_interrupted(analyze.look(subject, ["attn-distance"], opened(subject, album))) == {}


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_receptive_fields_and_comparisons_alike(
    album: Path, acts: Callable[[Callable[[Tensor], object]], None]
) -> None:
    acts(pressed_at(2))
    subject = small("acting", batch_size=1)
    found = until_interrupted(analyze.look(subject, ["receptive-field"], opened(subject, album)))
    assert {row.images for row in rows_of(found["receptive-field"])} == {2}
    assert found["receptive-field"].subject.setting.inputs == 2
    tiny.DOING.clear()
    acts(pressed_at(1))
    first, second = small("acting", batch_size=4), small("vit", batch_size=4)
    both = opened(first, album), opened(second, album)
    found = until_interrupted(analyze.compared(first, second, both, options=Options()))
    assert found["cka"].subject.setting.inputs == 4
    expected = cka.analyze(first.model, first_batch(both[0]), second.model, first_batch(both[1]))
    assert rows_of(found["cka"]) == expected.rows


def first_batch(found: Images) -> list[Tensor]:
    return [next(found.batches(4)).tensor]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_with_too_few_images_to_compare_is_ctrl_c(
    album: Path, acts: Callable[[Callable[[Tensor], object]], None]
) -> None:
    acts(pressed_at(1))
    first, second = small("acting", batch_size=2), small("vit", batch_size=2)
    both = opened(first, album), opened(second, album)
    assert until_interrupted(analyze.compared(first, second, both, options=Options())) == {}


# Two models


def test_two_models_are_compared_on_the_same_images_and_the_rows_name_both(album: Path) -> None:
    first, second = small("vit"), small("deit")
    both = opened(first, album), opened(second, album)
    (found,) = analyze.compared(first, second, both, options=Options(parts=False))
    expected = cka.analyze(
        first.model,
        [batch.tensor for batch in both[0].batches(4)],
        second.model,
        [batch.tensor for batch in both[1].batches(4)],
        parts=False,
    )
    assert rows_of(found) == expected.rows
    row = analyze.rows(found)[0]
    assert (row["model"], row["other_model"]) == ("tests.tiny:vit", "tests.tiny:deit")
    assert row["other_input_shape"] == (3, 32, 32)
    assert row["other_preprocessing"] == row["preprocessing"]
    assert row["inputs"] == PICTURES


def test_a_model_is_like_itself(album: Path) -> None:
    """CKA of equal features is 1, whatever they are."""
    first, second = small("vit"), small("vit")
    (found,) = analyze.compared(first, second, (opened(first, album), opened(second, album)), options=Options())
    assert [row.cka for row in rows_of(found) if row.index_a == row.index_b] == pytest.approx(
        [1.0] * len({row.index_a for row in rows_of(found)})
    )


def test_images_and_clips_are_not_compared(album: Path) -> None:
    first, second = small("clips"), small("vit")
    found = opened(second, album)
    with pytest.raises(BadInput, match=r"tests.tiny:clips takes clips and tests.tiny:vit images"):
        list(analyze.compared(first, second, (found, found), options=Options()))


def test_models_without_layers_are_refused_together(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = replace(small("vit"), model=torch.nn.Flatten())
    found = opened(small("vit"), album)
    with pytest.raises(NotSupported, match="cka is not defined for tests.tiny:vit and tests.tiny:vit"):
        list(analyze.compared(flat, flat, (found, found), options=Options()))


def test_the_threads_that_decode_end_with_the_run_however_it_ends(album: Path) -> None:
    def fails(_: Tensor) -> None:
        raise RuntimeError("a mistake of the model's")

    before = threading.active_count()
    tiny.DOING.append(fails)
    try:
        with pytest.raises(BadInput, match="a mistake of the model's"):
            look(small("acting", batch_size=1), ["attn-entropy"], album)
        assert (
            "a mistake of the model's" in look(small("acting"), ["receptive-field"], album)["receptive-field"].refusal
        )
    finally:
        tiny.DOING.remove(fails)
    assert threading.active_count() == before
