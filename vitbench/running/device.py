"""Chooses the device, describes it, and watches what else the machine did during a measurement."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from vitbench.errors import BadInput, NotSupported
from vitbench.records import Dtype, Machine
from vitbench.running.environment import describe


def resolve(name: str) -> torch.device:
    """Gives the device of a name: "auto" is the accelerator if there is one, else the CPU.

    Only asks whether there is one: no context is made on it.

    Raises:
        BadInput: there is no such kind of device.
        NotSupported: this machine, or this build of torch, has none.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return torch.device("cpu") if here is None else torch.device(here.type, 0)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"There is no device {name!r}; use auto, cpu, cuda, cuda:1, xpu or mps.") from error
    if device.type in ("cpu", "meta"):
        if name != "cpu":
            raise BadInput(f"Nothing can be measured on {name!r}; use auto, cpu, cuda, cuda:1, xpu or mps.")
        return device
    if here is None or here.type != device.type:
        found = "no accelerator" if here is None else f"only {here.type}"
        raise NotSupported(f"There is no {device.type} here: torch {torch.__version__} finds {found}.")
    index = device.index or 0
    if index >= torch.accelerator.device_count():
        raise NotSupported(f"There is no {name}: torch finds {torch.accelerator.device_count()} of that kind.")
    return torch.device(device.type, index)


def prepare(device: torch.device, dtype: Dtype, threads: int) -> None:
    """Sets this process up: the device, the precision of float32 products, the threads.

    float32 is float32: TF32 is on only where it is asked for, whatever a library switched on when it was imported.

    Raises:
        NotSupported: TF32 was asked of a device that is none of NVIDIA's or AMD's.
    """
    if dtype == "tf32" and device.type != "cuda":
        raise NotSupported(f"TF32 is a way of CUDA devices to multiply; {device.type} has fp32, bf16 and fp16.")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)


def machine(device: torch.device) -> Machine:
    """Describes the device as it is now."""
    about: dict[str, Any] = {"device_name": describe().cpu, "device_memory_bytes": None}
    driver = clock = clock_max = runtime = benchmark = None
    if device.type != "cpu":
        about["device_name"] = device.type
        with suppress(RuntimeError, AttributeError, NotImplementedError):
            properties = torch.get_device_module(device).get_device_properties(device)
            about = {"device_name": properties.name, "device_memory_bytes": properties.total_memory}
    if device.type == "cuda":
        runtime = torch.version.cuda or torch.version.hip
        benchmark = torch.backends.cudnn.benchmark
    handle = _nvml(device)
    if handle is not None:
        with suppress(pynvml.NVMLError):
            driver = pynvml.nvmlSystemGetDriverVersion()
            clock = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
            clock_max = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
    return Machine(
        **about,
        driver=driver,
        clock_mhz=clock,
        clock_max_mhz=clock_max,
        runtime=runtime,
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        matmul_precision=torch.get_float32_matmul_precision(),
        cudnn_benchmark=benchmark,
    )


class Watch:
    """What else the machine did between `start()` and `stop()`.

    Attributes:
        other_cores: processors that others kept busy, on average, the hypervisor's other guests included.
        throttled: whether the clock or the share of the processor was held back; None where the system does not tell.
        shared: whether other processes compute on the accelerator; None where the driver does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.other_cores = 0.0
        self.throttled: bool | None = None
        self.shared: bool | None = None
        self._before = self._now()

    def start(self) -> None:
        """Begins the watch, anew if it has begun."""
        self._before = self._now()

    def stop(self) -> None:
        """Ends the watch and fills in what was seen."""
        busy, own, held_back, capacity = (
            after - before for after, before in zip(self._now(), self._before, strict=True)
        )
        cores = psutil.cpu_count() or 1
        if capacity > 0:
            self.other_cores = max(0.0, (busy - own) / capacity * cores)
        self.throttled = held_back > 0 if _held_back_files() or self._device.type == "cuda" else None
        handle = _nvml(self._device)
        if handle is not None:
            with suppress(pynvml.NVMLError):
                # Not by the numbers of the processes: in a container they are others than ours.
                self.shared = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) > 1

    def _now(self) -> tuple[float, float, float, float]:
        """Gives seconds of all processors that were busy, that this process had, counts of being held back, and all seconds."""
        times = psutil.cpu_times()
        own = psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time as user time too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - idle, own.user + own.system, float(_held_back() + _too_hot_ns(self._device)), total


def _held_back_files() -> list[Path]:
    """Files of Linux that count how often a control group ran out of its share, or a core became too hot."""
    cores = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    quota = Path("/sys/fs/cgroup/cpu.stat")
    return [*cores, *([quota] if quota.exists() else [])]


def _held_back() -> int:
    count = 0
    for path in _held_back_files():
        with suppress(OSError, ValueError):
            text = path.read_text(encoding="ascii")
            fields = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
            count += int(fields.get("nr_throttled", 0)) if fields else int(text)
    return count


def _too_hot_ns(device: torch.device) -> int:
    """Gives how long NVIDIA's driver has held the clock back because of the heat, ever; 0 where it does not tell."""
    handle = _nvml(device)
    with suppress(pynvml.NVMLError):
        if handle is not None:
            return int(pynvml.nvmlDeviceGetViolationStatus(handle, pynvml.NVML_PERF_POLICY_THERMAL).violationTime)
    return 0


def _nvml(device: torch.device) -> Any:
    """Gives NVML's handle of a device, or None where there is no NVIDIA driver."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        pynvml.nvmlInit()
        # Torch's numbers follow CUDA_VISIBLE_DEVICES, NVML's do not.
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


def limit_memory() -> None:
    """Lets allocations on the CPU fail once the machine has no memory left, so that nothing else is killed or swapped out.

    Only Linux counts the data of a process against a limit; elsewhere the system decides.
    """
    if sys.platform == "linux":
        import resource

        wanted = psutil.Process().memory_info().data + free_memory()
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = [limit for limit in limits if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *allowed]), limits[1]))


def free_memory() -> int:
    """Gives the bytes that can still be had: of the machine, or of the container that this process runs in."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such group, or no limit: "max"
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, max(0, limit - int((group / "memory.current").read_text(encoding="ascii"))))
    return free


def free(device: torch.device) -> int | None:
    """Gives the bytes that can still be had on a device; None where its driver does not tell."""
    if device.type == "cpu":
        return free_memory()
    with suppress(RuntimeError, AttributeError, NotImplementedError):
        return int(torch.get_device_module(device).mem_get_info(device)[0])
    return None


def out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means that memory ran out: an accelerator's, or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator has no error of its own; MPS has a text of its own.
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
