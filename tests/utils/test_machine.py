"""Available memory and processor time from /proc and control groups."""

import os

import pytest

from alr_fast.utils import machine as machine_facts
from alr_fast.utils.machine import affine_cores, available_memory, usable_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Creates /proc and /sys/fs/cgroup of a machine: machine({path: text})."""

    def make(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(machine_facts, "_PROC", tmp_path / "proc")
        monkeypatch.setattr(machine_facts, "_CGROUPS", tmp_path / "cgroup")

    return make


MEMINFO = {"proc/meminfo": "MemTotal: 64 kB\nMemAvailable:      40 kB\nSwapFree: 0 kB\n"}
STAT = "anon 5\ninactive_file 1000\nactive_file 7\n"
V2 = {"proc/self/cgroup": "0::/job/step\n"}
V1 = {"proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/job\n0::/x\n"}

MACHINES = {
    "no control group": (MEMINFO, 40960),
    "no limit": ({**MEMINFO, **V2, "cgroup/job/memory.max": "max\n"}, 40960),
    "a limit of the group": (
        {
            **MEMINFO,
            **V2,
            "cgroup/job/step/memory.max": "30000\n",
            "cgroup/job/step/memory.current": "20000\n",
            "cgroup/job/step/memory.stat": STAT,
        },
        11000,
    ),
    "a limit of the group around it": (
        {
            **MEMINFO,
            **V2,
            "cgroup/job/step/memory.max": "max\n",
            "cgroup/job/step/memory.current": "20000\n",
            "cgroup/job/memory.max": "30000\n",
            "cgroup/job/memory.current": "21000\n",
        },
        9000,
    ),
    "a container's own group": (
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/\n",
            "cgroup/memory.max": "30000\n",
            "cgroup/memory.current": "20000\n",
        },
        10000,
    ),
    "a limit above what is there": (
        {
            **MEMINFO,
            **V2,
            "cgroup/job/memory.max": "90000\n",
            "cgroup/job/memory.current": "20000\n",
        },
        40960,
    ),
    "a limit that is exceeded": (
        {
            **MEMINFO,
            **V2,
            "cgroup/job/memory.max": "30000\n",
            "cgroup/job/memory.current": "31000\n",
        },
        0,
    ),
    "version 1": (
        {
            **MEMINFO,
            **V1,
            "cgroup/memory/job/memory.limit_in_bytes": "30000\n",
            "cgroup/memory/job/memory.usage_in_bytes": "20000\n",
            "cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
        },
        10500,
    ),
    "version 1 in a container": (
        {
            **MEMINFO,
            **V1,
            "cgroup/memory/memory.limit_in_bytes": "30000\n",
            "cgroup/memory/memory.usage_in_bytes": "20000\n",
        },
        10000,
    ),
    "version 1 without a limit": (
        {
            **MEMINFO,
            **V1,
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cgroup/memory/memory.usage_in_bytes": "20000\n",
        },
        40960,
    ),
    "a limit and no meminfo": (
        {**V2, "cgroup/job/memory.max": "30000\n", "cgroup/job/memory.current": "20000\n"},
        10000,
    ),
    "nothing known": ({}, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
}


@pytest.mark.parametrize("case", MACHINES)
def test_available_memory(machine, case):
    files, expected = MACHINES[case]
    machine(files)
    assert available_memory() == expected


def test_this_machine_has_memory():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**7 < available_memory() <= physical


V1_CPU = {"proc/self/cgroup": "3:cpu,cpuacct:/job\n0::/\n"}
QUOTAS = {
    "no control group": ({}, 8),
    "no quota": ({**V2, "cgroup/job/cpu.max": "max 100000\n"}, 8),
    "a quota": ({**V2, "cgroup/job/step/cpu.max": "300000 100000\n"}, 3),
    "a quota of the group around it": ({**V2, "cgroup/job/cpu.max": "200000 100000\n"}, 2),
    "a container's own group": ({**V2, "cgroup/cpu.max": "400000 100000\n"}, 4),
    "rounded up": ({**V2, "cgroup/job/cpu.max": "150000 100000\n"}, 2),
    "less than a core": ({**V2, "cgroup/job/cpu.max": "1000 100000\n"}, 1),
    "more than there are": ({**V2, "cgroup/job/cpu.max": "6400000 100000\n"}, 8),
    "version 1": (
        {
            **V1_CPU,
            "cgroup/cpu/job/cpu.cfs_quota_us": "250000\n",
            "cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "version 1 without a quota": (
        {
            **V1_CPU,
            "cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
            "cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "unreadable numbers": ({**V2, "cgroup/job/cpu.max": "\n", "cgroup/cpu.max": "1 0\n"}, 8),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_usable_cores(machine, monkeypatch, case):
    files, expected = QUOTAS[case]
    machine(files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert usable_cores() == expected


def test_cores_of_a_system_without_affinity(machine, monkeypatch):
    machine({})
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert affine_cores() == usable_cores() == 1
