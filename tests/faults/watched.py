"""An audit hook for the processes of a command under test: it writes each event that nothing of this project should cause.

The hook reads its sandbox from `WATCHED`, and is installed in a forked command by `watch()`, and in the processes that this one
starts by `sitecustomize`, which lies in a folder of their PYTHONPATH.
"""

from __future__ import annotations

import os
import sys

# Modules of the standard library that no part of this project imports: a configuration that has one imported can import any.
PROBES = {"this", "antigravity", "turtledemo", "idlelib"}
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.startfile", "pty.spawn"}
CHANGES = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1}
CHANGES |= {"os.rename": 2, "os.link": 2, "os.symlink": 2, "shutil.rmtree": 1, "shutil.move": 2, "shutil.copyfile": 2}
OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Programs that a process of ours may start: git for the commit, Slurm's, and those by which libraries ask for fonts and cores.
PROGRAMS = {
    "git",
    "fc-list",
    "sbatch",
    "sacct",
    "squeue",
    "scontrol",
    "scancel",
    "lscpu",
    "uname",
    "/sbin/ldconfig",
    "gcc",
    "ld",
}
HARMFUL = {"posix", "nt", "os", "subprocess", "builtins", "mlflow.utils.process"}


def watch(sandbox: str, allowed: list[str], log: int) -> None:
    """Write to the file descriptor `log` a line for each event outside `allowed`, the folders in which a run may write."""
    roots = tuple(os.path.realpath(each) + os.sep for each in allowed)
    mine = os.path.realpath(sandbox) + os.sep
    secret = os.path.join(mine, "secret.txt")
    busy = False

    def within(path: object) -> str | None:
        """Return an absolute path inside the sandbox that is not in the allowed folders, else None."""
        if not isinstance(path, str | bytes | os.PathLike) or os.fsdecode(path).startswith("<"):
            return None
        full = os.path.realpath(os.fsdecode(path))
        return full if (full + os.sep).startswith(mine) and not (full + os.sep).startswith(roots) else None

    def harm(event: str, args: tuple) -> str | None:
        """Return why an event is outside the list, else None."""
        if event in STARTS:
            words = args[1] if event in ("subprocess.Popen", "os.exec", "os.posix_spawn") and len(args) > 1 else args
            words = [os.fsdecode(each) for each in words] if isinstance(words, list | tuple) else [str(words)]
            program = words[0] if words else ""
            fine = program in PROGRAMS or os.path.realpath(program) == os.path.realpath(sys.executable)
            return None if fine and "canary" not in str(words) else f"started {words}"
        if event == "exec":
            # A module that `importlib` imports has no other event.
            file = args[0].co_filename
            probe = PROBES & {*os.path.splitext(file)[0].split(os.sep)[-2:]}
            return f"ran {file}" if probe or within(file) else None
        if event == "compile" and isinstance(args[0], str | bytes) and "canary" in str(args[0])[:2000]:
            return "compiled text of the configuration" if args[1] in ("<string>", None) else None
        if event == "import":
            return f"imported {args[0]}" if str(args[0]).split(".")[0] in PROBES else None
        if event == "open":
            path, mode, flags = (*args, None, None)[:3]
            writes = (isinstance(flags, int) and flags & OPENED_TO_WRITE) or (isinstance(mode, str) and set(mode) & set("wax+"))
            if isinstance(path, str | bytes) and os.path.realpath(os.fsdecode(path)) == secret:
                return f"read {path!r}"
            return f"wrote {full}" if writes and (full := within(path)) else None
        if event in CHANGES:
            # A path may be relative to an open folder, as in `shutil.rmtree`.
            paths = args[: CHANGES[event]]
            if event in ("os.remove", "os.rmdir") and args[1] != -1:
                paths = (f"/proc/self/fd/{args[1]}/{os.fsdecode(args[0])}",)
            return next((f"{event} {full}" for path in paths if (full := within(path))), None)
        if event == "os.putenv":
            return f"set {args[0]!r}" if os.fsdecode(args[0]) == os.environ.get("WATCHED_VARIABLES") else None
        if event == "ctypes.dlopen":
            return f"loaded {args[0]}" if within(args[0]) else None
        if event == "socket.bind" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1", "localhost"):
            return f"listened on {args[1]}"
        if (
            event == "pickle.find_class"
            and str(args[0]) in HARMFUL
            and args[1] in ("system", "_exec_cmd", "eval", "exec", "Popen")
        ):
            return f"unpickled {args[0]}.{args[1]}"
        return None

    def hook(event: str, args: tuple) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if why := harm(event, args):
                os.write(log, f"{why}\n".encode())
        except Exception as error:
            os.write(log, f"the hook failed at {event}: {error!r}\n".encode())
        finally:
            busy = False

    sys.addaudithook(hook)
