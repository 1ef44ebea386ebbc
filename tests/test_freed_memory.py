"""What the server has freed goes back to the system."""

import subprocess
import sys

# blocks of 8 MiB, all freed but the last, which keeps the heap from shrinking: without the call 64 MiB stay
PROGRAM = """
import psutil, torch
from server.freed_memory import give_back_freed_memory
give_back_freed_memory()
torch.ones(2**22)
before = psutil.Process().memory_info().rss
blocks = [torch.ones(2**21) for _ in range(8)]
last = blocks.pop()
blocks.clear()
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def test_freed_blocks_go_back_to_the_system() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert float(told.stdout) < 16
