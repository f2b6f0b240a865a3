"""What a process asks of the kernel when it begins to serve."""

from __future__ import annotations

import resource
import subprocess
import sys

_CHILD = """
from state.process import allow_files
allow_files()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("FDSize:")][0])
"""


def test_the_table_of_open_files_need_not_grow_while_a_server_serves() -> None:
    """The kernel has its size in FDSize (proc_pid_status(5))."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
    said = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    assert int(said.stdout) >= wanted
