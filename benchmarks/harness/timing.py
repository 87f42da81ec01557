"""Ways to time a step: the host's clock, events on the device, CUDA graphs, the profiler."""

import random
import time
from collections.abc import Callable, Sequence

import torch

Step = Callable[[], object]


def take_turns(
    turns: dict[str, Callable], seconds: float, at_least: int = 1, *, shuffle: bool = False
) -> dict[str, list]:
    """Calls the functions in turn until the time is over, so that all see the same machine.

    Args:
        turns: The functions.
        seconds: Time for all rounds.
        at_least: Fewest rounds.
        shuffle: Changes the order in each round: a function may suffer from the state in which the
            previous one left the caches.

    Returns:
        The return values of each function, one for each round.
    """
    results: dict[str, list] = {name: [] for name in turns}
    order, generator = list(turns), random.Random(0)
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < at_least:
        if shuffle:
            generator.shuffle(order)
        for name in order:
            results[name].append(turns[name]())
        rounds += 1
    return results


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def host_turn(step: Step, steps: int, device: str) -> tuple[float, float]:
    """Calls a step repeatedly without waiting in between.

    Returns:
        Microseconds a step until the device has finished, and until the host has.
    """
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    called = time.perf_counter()
    synchronize(device)
    done = time.perf_counter()
    return (done - begin) * 1e6 / steps, (called - begin) * 1e6 / steps


def event_time(step: Step, steps: int) -> float:
    """Microseconds a step between two events on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / steps


def device_turn(step: Step, steps: int, queue_us: float) -> float:
    """Microseconds a step on the device, with the host ahead of it.

    The device first waits ``queue_us`` microseconds, until the host has queued the steps. The time
    of a step that makes the host wait, such as `reference`, includes that wait.
    """
    torch.cuda._sleep(int(queue_us * 2000))  # cycles; clocks are about 2 GHz
    return event_time(step, steps)


def queue_time(step: Step, steps: int) -> float:
    """The wait for `device_turn` in microseconds, at most 5 ms; also warms up."""
    for _ in range(2):
        _, host_us = host_turn(step, steps, "cuda")
    return min(1.5 * host_us * steps + 20, 5000.0)


def capture(step: Step, steps: int) -> Step:
    """A CUDA graph of several steps; a few steps run before the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(steps):
            step()
    return graph.replay


def kernel_times(steps: Sequence[Step], calls: int) -> list[list[list[float]]]:
    """Durations of the device's kernels in each call of each step, in microseconds, by CUPTI.

    Copies and fills by the driver are not kernels. Profile after all timing: the profiler slows
    down the launches that follow.

    Returns:
        step -> call -> kernel; empty if the profiler records nothing.
    """
    from torch.profiler import ProfilerActivity, profile

    for some in (steps[:1], steps):  # the first profile may miss some kernels
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for step in some:
                torch.cuda._sleep(1)  # its kernel marks the beginning of the step
                for _ in range(calls):
                    step()
                torch.cuda.synchronize()
    events = [
        (event.time_range.start, event.name, event.time_range.elapsed_us())
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]
    return split_kernels(events, len(steps), calls)


def split_kernels(
    events: list[tuple[float, str, float]], steps: int, calls: int
) -> list[list[list[float]]]:
    """Divides (start, name, duration) among steps and calls, see `kernel_times`."""
    groups: list[list[float]] = []
    for _, name, duration in sorted(events):
        if "spin_kernel" in name:
            groups.append([])
        elif groups and not name.startswith(("Memcpy", "Memset")):
            groups[-1].append(duration)
    if len(groups) != steps:
        return [[[]] * calls for _ in range(steps)]
    divided = []
    for group in groups:
        each = len(group) / calls
        divided.append([group[round(n * each) : round((n + 1) * each)] for n in range(calls)])
    return divided
