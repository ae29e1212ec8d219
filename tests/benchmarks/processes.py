"""Whole processes: command lines in a folder of their own, and the memory that they and their children take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNNER = (sys.executable, "-m", "runner")
# As it is for a user without JAX, which Keras would import here for half a second more.
TENSORFLOW = (sys.executable, "-c", "import sys; sys.modules['jax'] = None; import tensorflow")
APP = """import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    pass


main()
"""


class Folder:
    """A temporary folder in which commands run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command, which finds this checkout and none of the settings of who measures."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "TF_", "HYDRA_", "PYTHON"))}
        env = own | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=self.path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def run(self, *command: str, code: int = 0) -> None:
        """Run a command to its end; it has to end with this exit code, or its time would mean nothing."""
        process = self.start(*command)
        _, err = process.communicate()
        assert process.returncode == code, f"{command} ended with {process.returncode}: {err.decode()[-2000:]}"

    def peak(self, *command: str) -> float:
        """Run a command and return the most memory that it and its children took at one time, in MB."""
        process, most = self.start(*command), 0
        while process.poll() is None:
            most = max(most, sum(map(memory, family(process.pid))))
            # As often as makes a peak of a tenth of a second seen, and takes a few percent of a core.
            time.sleep(0.05)
        assert process.returncode == 0
        return most / 1e6

    def clear(self) -> None:
        """Remove what runs have left."""
        shutil.rmtree(self.path / "outputs", ignore_errors=True)


@contextmanager
def folder() -> Iterator[Folder]:
    """Give a folder that is empty, and gone afterwards."""
    with tempfile.TemporaryDirectory() as path:
        yield Folder(Path(path))


def smallest_app(path: Path) -> tuple[str, ...]:
    """Write the smallest Hydra app with as many config groups and files as conf/ has, and return the command that runs it."""
    ours, chosen = ROOT / "conf", {}
    for file in sorted(ours.rglob("*.yaml")):
        group = file.parent.relative_to(ours)
        if group.parts[:1] not in ((), ("hydra",)):
            (path / "conf" / group).mkdir(parents=True, exist_ok=True)
            (path / "conf" / group / file.name).write_text("key: 1\n")
            chosen.setdefault(str(group), file.stem)
    defaults = "".join(f"  - {group}: {name}\n" for group, name in chosen.items())
    (path / "conf/config.yaml").write_text(f"defaults:\n  - _self_\n{defaults}")
    (path / "app.py").write_text(APP)
    return sys.executable, "app.py"


def family(pid: int) -> list[int]:
    """Return a process and those that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # What has ended meanwhile is no longer there.
        with suppress(OSError):
            # The name, in brackets, may hold anything; the parent is the second word after it.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def memory(pid: int) -> int:
    """Return the bytes of a process, those it shares with others divided among them (PSS)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
