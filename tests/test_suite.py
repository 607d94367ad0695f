"""Suites: what a file may say, what is said of its mistakes, and the suites that come with vitbench."""

from __future__ import annotations

import inspect
from datetime import date
from pathlib import Path

import pytest

from vitbench import catalog, suite, sweep
from vitbench.cli import measure as command
from vitbench.errors import BadInput, UnknownName
from vitbench.measure import KINDS
from vitbench.metrics import METRICS
from vitbench.suites import SHIPPED


def read(folder: Path, text: str) -> suite.Suite:
    path = folder / "mine.toml"
    path.write_text(text)
    return suite.read(str(path))


def test_a_run_asks_for_what_it_says(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        title = "everything"
        [[run]]
        models = "vit_ti16"
        metrics = ["throughput", "flops"]
        img_size = [224, "256x192"]
        batch_size = [1, "auto"]
        device = "cpu"
        dtype = ["bf16", "fp16"]
        amp = true
        mode = "train"
        compile = "inductor:max-autotune"
        channels_last = true
        grad_checkpointing = true
        threads = [1, 2]
        min_time = 1
        repeats = 3
        timeout = 60.5
        """,
    )
    ask = found.runs[0].ask()
    assert found.title == "everything"
    assert ask.models == [("vit_ti16", False)]
    assert ask.metrics == ["flops", "throughput"]  # the order of the shelf, so of the columns
    assert ask.img_sizes == [(224, 224), (256, 192)]
    assert ask.batch_sizes == [1, "auto"]
    assert (ask.where, ask.dtypes, ask.amp, ask.mode) == ("cpu", ["bf16", "fp16"], True, "train")
    assert (ask.compile, ask.channels_last, ask.grad_checkpointing) == ("inductor:max-autotune", True, True)
    assert (ask.threads, ask.rule.min_time_s, ask.repeats, ask.timeout_s) == ([1, 2], 1, 3, 60.5)
    # Every model with every size, batch size, dtype and number of threads.
    assert len(sweep.plan(found)) == 1 * 2 * 2 * 2 * 2


def test_the_keys_are_the_options_of_bench_and_max_batch() -> None:
    options = {name for one in (command.bench, command.max_batch) for name in inspect.signature(one).parameters}
    elsewhere = {"family", "no_isolation", "format", "output"}
    assert set(suite.Run.model_fields) == options - elsewhere | {"families", "metrics"}


def test_every_metric_of_the_shelf_can_be_swept() -> None:
    assert list(KINDS) == list(METRICS.names)


def test_the_largest_batch_for_a_memory_is_predicted(tmp_path: Path) -> None:
    run = '[[run]]\nmodels = "vit_ti16"\ndevice = "cuda"\nmetrics = "max_batch"\nmemory = "24GiB"\n'
    (item,) = sweep.plan(read(tmp_path, f'title = "t"\n{run}'))
    assert item.job.limit_bytes == 24 * 2**30
    assert item.job.exact


def test_the_commands_device_and_dtype_go_before_the_suites(tmp_path: Path) -> None:
    run = '[[run]]\nmodels = "vit_ti16"\ndevice = "cuda:7"\ndtype = ["fp32", "fp16"]\n'
    items = sweep.plan(read(tmp_path, f'title = "t"\n{run}'), where="cpu", dtype="bf16")
    assert [(item.job.setting.device, item.job.setting.dtype) for item in items] == [("cpu", "bf16")]


CHECKS = """
title = "t"
[[run]]
models = "vit_ti16"
[[threshold]]
metric = "throughput"
models = "vit_*"
within = "5%"
[[expected]]
model = "swin_*"
metric = "predicted_*"
reason = "a mask that is kept"
until = 2027-01-31
[against]
revision = "upstream/main"
budget = "2m"
"""


def test_what_a_check_needs_is_read_and_a_sweep_leaves_it_alone(tmp_path: Path) -> None:
    found = read(tmp_path, CHECKS)
    (threshold,), (expected,) = found.thresholds, found.expected
    assert (threshold.metric, threshold.models, threshold.within) == ("throughput_per_s", "vit_*", 0.05)
    assert (expected.model, expected.metric, expected.until) == ("swin_*", "predicted_*", date(2027, 1, 31))
    assert (found.against.revision, found.against.budget) == ("upstream/main", 120)
    assert len(sweep.plan(found)) == 1
    without = read(tmp_path, RUN)
    assert (without.thresholds, without.expected, without.against.revision) == ((), (), "origin/main")


def expected(**changes: str) -> str:
    entry = {"model": '"*"', "metric": '"macs"', "reason": '"why"', "until": "2027-01-31"} | changes
    return RUN + "[[expected]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items() if value)


def test_what_is_asked_twice_is_measured_once(tmp_path: Path) -> None:
    runs = '[[run]]\nmodels = "vit_ti16"\n[[run]]\nfamilies = "vit"\n'
    names = [item.job.setting.model for item in sweep.plan(read(tmp_path, f'title = "t"\n{runs}'))]
    assert names == [row.name for row in catalog.of_family("vit")]


RUN = 'title = "t"\n[[run]]\nmodels = "vit_ti16"\n'


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (RUN + "batch_size = 0", ['run[0].batch_size[0]: 0 is neither "auto" nor a whole number above zero']),
        (RUN + 'batch_size = [1, "big"]', ["run[0].batch_size[1]: 'big' is neither"]),
        (RUN + "batch_size = []", ["run[0].batch_size: is empty"]),
        (RUN + 'memory = "24GiB"', ["run[0]: memory is what the largest batch must fit into"]),
        (RUN + 'metrics = "max_batch"\nmemory = 24', ["run[0].memory: '24' is not an amount of memory"]),
        (RUN + 'metrics = ["flops", "max_batch"]', ["run[0]: max_batch needs a run of its own"]),
        (RUN + "batchsize = 1", ["run[0].batchsize: There is no key named 'batchsize'. Did you mean batch_size?"]),
        (RUN + 'img_size = "1x2x3"', ["run[0].img_size[0]: '1x2x3' is not a size such as 384"]),
        (RUN + "img_size = 0", ["run[0].img_size[0]: 0 is not a size"]),
        (RUN + 'input = "3x224"', ["run[0].input: '3x224' is not an input such as \"3x224x224\""]),
        (RUN + 'dtype = "fp64"', ["run[0].dtype[0]: should be 'fp32', 'tf32', 'bf16' or 'fp16', not 'fp64'"]),
        (RUN + 'metrics = "flop"', ["run[0].metrics[0]: There is no metric named 'flop'. Did you mean flops?"]),
        (RUN + 'repeats = "3"', ["run[0].repeats: should be a whole number, not '3'"]),
        (RUN + "min_time = -1", ["run[0].min_time: should be greater than or equal to 0, not -1"]),
        (RUN + "amp = 1", ["run[0].amp: should be true or false, not 1"]),
        (RUN + "[[run]]\n", ["run[1]: names no models"]),
        ('[run]\nmodels = "a"\n', ["title: is missing", "run: should be several tables", "[[run]]"]),
        ('title = "t"\n', ["run: is missing"]),
        (RUN + 'amp = "yes"\nmod = "train"', ["run[0].amp: should be true or false", "run[0].mod: ", "mean mode"]),
        (
            RUN + '[[threshold]]\nmetric = "predicted"\nwithin = 5',
            [
                "threshold[0].metric: 'predicted' may be predicted_",
                "threshold[0].within: '5' is not a part below 100 %, such as ",
            ],
        ),
        (RUN + '[[threshold]]\nmetric = "speed"\nwithin = "5%"', ["threshold[0].metric: No column named 'speed'"]),
        (RUN + '[[threshold]]\nmetric = "macs"\nwithin = "-1%"', ["threshold[0].within: '-1%' is not a part"]),
        (RUN + '[[threshold]]\nmetric = "macs"', ["threshold[0].within: is missing"]),
        (
            RUN + '[[threshold]]\nmetric = "operators"\nwithin = "5%"',
            ["threshold[0].metric: operators takes no threshold"],
        ),
        (
            RUN + '[[threshold]]\nmetric = "throughput"\nwithin = "0%"',
            ["threshold[0]: no two times agree within 0%"],
        ),
        (
            RUN + '[[threshold]]\nmodel = "a"',
            ["threshold[0].model: There is no key named 'model'. Did you mean models?"],
        ),
        (RUN + '[threshold]\nmetric = "macs"', ["threshold: should be several tables, each written [[threshold]]"]),
        (expected(reason=""), ["expected[0].reason: is missing"]),
        (expected(reason='""'), ["expected[0].reason: is empty"]),
        (expected(until=""), ["expected[0].until: is missing"]),
        (expected(until='"2027-01-31"'), ["expected[0].until: should be a date such as 2027-01-31, without quotes"]),
        (expected(until="2027-01-31T10:00:00"), ["expected[0].until: should be a date such as 2027-01-31"]),
        (expected(metric='"mac"'), ["expected[0].metric: No column named 'mac'"]),
        (RUN + '[against]\nbudget = "soon"', ["against.budget: 'soon' is not a time above zero"]),
        (RUN + '[against]\nrevision = ""', ["against.revision: is empty"]),
        (RUN + '[against]\nrev = "main"', ["against.rev: There is no key named 'rev'", "Known are revision, budget"]),
        (RUN + "[[against]]\n", ["against: should be a table, written [against]"]),
        ('title = "t"\nthis is no TOML\n', ["mine.toml is no TOML", "line 2"]),
    ],
)
def test_a_mistake_names_file_and_key_or_line(tmp_path: Path, text: str, sentences: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert all(sentence in said for sentence in sentences), said
    assert str(tmp_path / "mine.toml") in said
    assert "pydantic" not in said


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ('models = ["vit_ti16", "swim_b"]', "run[0]: models: There is no model named 'swim_b'. Did you mean swin_b"),
        ('models = "zzz*"', "run[0]: No model of the catalog matches 'zzz*'"),
        ('families = "swim"', "run[0]: There is no family named 'swim'. Did you mean swin"),
        ('models = "vit_ti16"\namp = true', "run[0]: --amp runs"),
        ('models = "vit_ti16"\nmetrics = "flops"\nbatch_size = "auto"', "run[0]: A batch size of auto"),
    ],
)
def test_what_does_not_exist_or_fit_is_found_before_measuring(tmp_path: Path, run: str, sentence: str) -> None:
    found = read(tmp_path, f'title = "t"\n[[run]]\n{run}\n')
    with pytest.raises(BadInput) as caught:
        sweep.plan(found)
    assert f"mine.toml: {sentence}" in str(caught.value)


def test_a_misspelt_suite_has_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean papers"):
        suite.read("paper")
    with pytest.raises(UnknownName, match="Give a TOML file, or one of ci, fig12, papers, smoke"):
        suite.read(str(tmp_path / "absent.xyz"))
    with pytest.raises(BadInput, match="Is a directory"):
        suite.read(str(tmp_path))
    (tmp_path / "bytes.toml").write_bytes(b"title = '\xff'")
    with pytest.raises(BadInput, match="no text in UTF-8"):
        suite.read(str(tmp_path / "bytes.toml"))


def test_the_suites_that_are_promised_are_there() -> None:
    assert sorted(SHIPPED) == ["ci", "fig12", "papers", "smoke"]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_name_in_a_shipped_suite_has_a_plan(name: str) -> None:
    items = sweep.plan(suite.read(name))
    assert [item.job.problem for item in items if item.job.problem] == []
    assert items


def test_papers_is_the_catalog_at_published_sizes() -> None:
    jobs = [item.job for item in sweep.plan(suite.read("papers"))]
    assert sorted(job.setting.model for job in jobs) == sorted(catalog.VARIANTS)
    assert all(job.setting.input_shape == catalog.VARIANTS[job.setting.model].input_shape for job in jobs)
    assert all({"flops", "throughput"} <= set(job.metrics) for job in jobs)


def test_figure_12_has_the_papers_models_and_sizes() -> None:
    """The legend and the axis of the figure; H/14 cannot have sizes that its patches do not tile."""
    legend = ["bit_r50x1", "bit_r50x2", "vit_b32", "vit_l32", "vit_b16", "vit_l16", "bit_r152x4"]
    for half, asked in (("throughput", "auto"), ("max_batch", "max")):
        found: dict[str, set[int]] = {}
        for item in sweep.plan(suite.read("fig12")):
            if item.job.metrics == (half,):
                found.setdefault(item.job.setting.model, set()).add(item.job.setting.input_shape[-1])
                assert item.job.setting.batch_size_asked == asked
        assert found.pop("vit_h14") == {14 * round(size / 14) for size in (64, 128, 224, 384, 512)}
        assert found == {name: {64, 128, 224, 384, 512} for name in legend}
