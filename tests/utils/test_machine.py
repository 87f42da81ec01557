"""Available memory from /proc and control groups."""

import os

import pytest

from alr_fast.utils import machine as machine_facts
from alr_fast.utils.machine import available_memory


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
