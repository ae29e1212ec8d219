"""Write the parts of the READMEs that come from conf/, from a run and from the imports: `python tests/readme.py`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONF = ROOT / "conf"
HOUSE = ROOT / "runner/README.md"
# Drawn as one.
HEART = {"errors", "trace", "loop", "stopping", "guesses", "optimizers", "losses", "strategies", "executions", "experiment"}


def part(text: str, name: str) -> re.Match[str]:
    """Return what stands between the comment that begins with these words and the next `end`."""
    found = re.search(rf"(<!-- {re.escape(name)}.*? -->\n)(.*?)(<!-- end -->)", text, re.DOTALL)
    assert found, f"there is no part '{name}'"
    return found


def replace(name: str, new: str, file: Path = README) -> None:
    """Put this text where a file has the part of this name."""
    text = file.read_text()
    found = part(text, name)
    file.write_text(text[: found.start(2)] + new + text[found.end(2) :])


def drawing() -> str:
    """Return the imports between packages as a Mermaid graph, without those that follow from others."""
    import grimp

    graph = grimp.build_graph("runner")
    below: dict[str, set[str]] = {}
    for module in graph.modules - {"runner"}:
        for other in graph.find_modules_directly_imported_by(module) - {"runner"}:
            one, another = ("heart" if each in HEART else each for each in (module.split(".")[1], other.split(".")[1]))
            if one != another:
                below.setdefault(one, set()).add(another)

    def all_below(name: str) -> set[str]:
        return below.get(name, set()).union(*map(all_below, below.get(name, set())))

    lines = []
    for name in sorted(below):
        follows = set().union(*map(all_below, below[name]))
        lines += [f"  {name} --> {other}" for other in sorted(below[name] - follows)]
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


def groups() -> str:
    """Return the groups with their choices, each with its file's comment."""
    chosen: dict[str, str] = {}
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]:
        if isinstance(entry, dict):
            chosen |= {key: "none" if value is None else "".join(value) for key, value in entry.items()}
    lines = ["| group | default | choices |", "|---|---|---|"]
    details = []
    # What a choice of one group picks from another, as a loss its data.
    inner = {path.relative_to(CONF).as_posix() for path in CONF.glob("*/*") if path.is_dir() and path.parent.name != "hydra"}
    groups = [*chosen, *(group for group in inner if group not in chosen)]
    for group in sorted(groups, key=lambda group: [*chosen].index(group if group in chosen else group.split("/")[0])):
        default = f"`{chosen[group]}`" if group in chosen else f"each {group.split('/')[0]}'s own"
        if group.startswith("override "):
            continue
        files = sorted((CONF / group).glob("*.yaml"))
        names = ", ".join(f"`{file.stem}`" for file in files)
        lines.append(f"| `{group}` | {default} | {names} |")
        details += [f"| `{group}={file.stem}` | {comment(file)} |" for file in files]
    table = "\n".join(["| choice | what it is |", "|---|---|", *details])
    summary = "<details><summary>What each of them is</summary>"
    return "\n".join(lines) + f"\n\n{summary}\n\n{table}\n\n</details>\n"


def comment(file: Path) -> str:
    """Return a file's opening comment on one line."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    opening = []
    for line in lines:
        if not line.startswith("#"):
            break
        opening.append(line.removeprefix("#").strip())
    return " ".join(opening).replace("|", "\\|")


def masked(output: str) -> str:
    """Return a run's output with what differs each time made equal."""
    output = re.sub(r"\d+\.\d+ s ", "0.000 s ", output)
    return re.sub(r"[0-9a-f]{32}", "0123456789abcdef" * 2, output)


def own() -> dict[str, str]:
    """Return the files that a user adds, by path: Python's from what is called `name.py`:, YAML's by their first lines."""
    text = README.read_text()
    found = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL))
    found |= dict(re.findall(r"`(\w+/[\w/]+\.yaml)`:\n\n```yaml\n(.*?)```", text, re.DOTALL))
    for block in re.findall(r"```yaml\n(# my_conf/.*?)```", text, re.DOTALL):
        found |= {each.split()[1]: each for each in block.split("---\n")}
    return found


def write_own(folder: Path) -> None:
    """Put these files into a folder."""
    for name, content in own().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def own_commands() -> list[str]:
    """Return the commands that README.md gives for these files."""
    return re.findall(r"^python (-m runner.* --config-dir my_conf .*)$", README.read_text(), re.MULTILINE)


def outputs() -> list[str]:
    """Return the commands whose output README.md shows."""
    return re.findall(r"<!-- output of: python (.*) -->", README.read_text())


def main() -> None:
    """Write all parts anew."""
    replace("groups", groups())
    replace("drawing", drawing(), HOUSE)
    for command in outputs():
        with tempfile.TemporaryDirectory() as folder:
            write_own(Path(folder))
            words = [sys.executable, *shlex.split(command)]
            env = os.environ | {"PYTHONPATH": str(ROOT)}
            output = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
        replace(f"output of: python {command}", f"```text\n{output}```\n")


if __name__ == "__main__":
    main()
