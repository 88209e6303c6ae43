"""How much memory `voices serve` takes while many large clips come at once, as Linux counts it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import measure

MIB = 2**20


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--uploads", type=int, default=100, help="at once")
    parser.add_argument("--mib", type=int, default=16, help="of each")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        words = [sys.executable, "-m", "cli.main", "serve", "--port", "0", "--no-inference"]
        environ = os.environ | {"VOICES_HOME": home, "VOICES_LOG_LEVEL": "warning"}
        with subprocess.Popen(
            words, env=environ, cwd=measure.ROOT, stderr=subprocess.PIPE, text=True
        ) as server:
            assert server.stderr is not None
            url = next(line for line in server.stderr if " on http" in line).split(" on ")[1]
            found = measured(server.pid, url.strip(), asked.uploads, bytes(asked.mib * MIB))
            server.send_signal(signal.SIGTERM)
            server.communicate()
    measure.table(list(found), [list(found.values())])
    measure.record(asked.results, "uploads", vars(asked), found)


def measured(pid: int, url: str, uploads: int, clip: bytes) -> dict[str, object]:
    send(url, clip)  # to warm up
    before_mib = peak_mib(pid)
    with ThreadPoolExecutor(uploads) as threads:
        statuses = Counter(threads.map(lambda _: send(url, clip), range(uploads)))
    return {
        "sent MiB": uploads * len(clip) // MIB,
        "answers": dict(statuses),
        "peak before, MiB": before_mib,
        "growth, MiB": peak_mib(pid) - before_mib,
    }


def send(url: str, clip: bytes) -> int:
    form = {"data": {"name": "alice"}, "files": {"audio": clip}}
    return httpx.post(f"{url}/voices", timeout=600, **form).status_code  # type: ignore[arg-type]


def peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


if __name__ == "__main__":
    main()
