"""Choosing, describing and watching the device."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from vitbench.errors import BadInput, NotSupported
from vitbench.running import device

CPU = torch.device("cpu")
WITHOUT = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")


@WITHOUT
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert device.resolve("auto") == CPU


@WITHOUT
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu"])
def test_a_device_that_is_not_there_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(NotSupported, match=f"There is no {name.partition(':')[0]} here: torch .* finds no accelerator"):
        device.resolve(name)


@pytest.mark.parametrize("name", ["gpu", "meta", "cpu:0", "cuda:x"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"use auto, cpu, cuda, cuda:1, xpu or mps"):
        device.resolve(name)


def test_an_accelerators_number_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert device.resolve("auto") == device.resolve("cuda") == torch.device("cuda:0")
    assert device.resolve("cuda:1") == torch.device("cuda:1")
    with pytest.raises(NotSupported, match="There is no cuda:2: torch finds 2 of that kind"):
        device.resolve("cuda:2")
    with pytest.raises(NotSupported, match="There is no mps here: torch .* finds only cuda"):
        device.resolve("mps")


def test_float32_is_float32_whatever_a_library_switched_on() -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("high")
        device.prepare(CPU, "fp32", 1)
        assert torch.get_float32_matmul_precision() == device.machine(CPU).matmul_precision == "highest"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])
    with pytest.raises(NotSupported, match="TF32 is a way of CUDA devices"):
        device.prepare(CPU, "tf32", 1)


def test_the_cpu_is_described() -> None:
    about = device.machine(CPU)
    assert about.device_name
    assert about.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert about.device_memory_bytes is None
    assert about.driver is None
    assert about.clock_mhz is None
    assert about.cudnn_benchmark is None


def test_other_work_is_seen_and_our_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s four processors were busy for 15 of 40 s, 5 of them ours: others kept one processor busy."""
    times = iter([SimpleTimes(user=100.0, idle=300.0), SimpleTimes(user=115.0, idle=325.0)])
    own = iter([7.0, 12.0])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(times))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=next(own), system=0.0))
    )
    watch = device.Watch(CPU)
    watch.stop()
    assert watch.other_cores == pytest.approx(1.0)


class SimpleTimes(tuple[float, float]):
    """As psutil has it: a tuple with names."""

    user: float
    idle: float

    def __new__(cls, *, user: float, idle: float) -> SimpleTimes:
        self = super().__new__(cls, (user, idle))
        self.user, self.idle = user, idle
        return self


def test_a_busy_neighbour_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        watch = device.Watch(CPU)
        time.sleep(1.0)
        watch.stop()
        neighbour.kill()
    assert watch.other_cores > 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the data of a process")
def test_a_limit_that_the_user_has_set_stands() -> None:
    code = (
        "import resource\nfrom vitbench.running import device\ndevice.limit_memory()\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA))"
    )
    command = f"ulimit -d 8000000 && exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"({8_000_000 * 1024}, {8_000_000 * 1024})"


def test_held_back_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(device, "_held_back", lambda: next(counts))
    monkeypatch.setattr(device, "_held_back_files", lambda: ["cpu.stat"])
    watch = device.Watch(CPU)
    watch.stop()
    assert watch.throttled is True


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_known(error: Exception, expected: bool) -> None:
    assert device.out_of_memory(error) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the data of a process")
def test_allocations_fail_before_the_machine_is_out_of_memory() -> None:
    code = (
        "import psutil, torch\nfrom vitbench.running import device\ndevice.limit_memory()\n"
        "try:\n    torch.empty(psutil.virtual_memory().available + 2**28, dtype=torch.uint8)\n"
        "except RuntimeError as error:\n    print(device.out_of_memory(error))\n"
        "print(torch.ones(1000).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1000.0"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_an_accelerator_is_described() -> None:
    where = device.resolve("auto")
    about = device.machine(where)
    assert about.device_name != "cuda"
    assert about.device_memory_bytes
    if where.type == "cuda" and torch.version.cuda:
        assert about.driver
        assert 0 < (about.clock_mhz or 0) <= (about.clock_max_mhz or 0)
        assert about.runtime == torch.version.cuda
