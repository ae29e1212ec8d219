"""`python -m runner.check`: check that a configuration's parts keep the contract, one line per check; no run is made."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.cli import entry
from runner.errors import UserError
from runner.security import secrets
from runner.system import quiet, startup


@hydra.main(version_base="1.3", config_path=str(entry.CONF), config_name="config")
def task(cfg: DictConfig) -> None:
    """Check one configuration."""
    entry.answer(report, cfg)


def report(cfg: DictConfig) -> int:
    """Print a line for each check, and return the exit code: 1 if one failed, else 0."""
    from runner.cli import job

    job.checked(cfg, HydraConfig.get())
    with quiet.tensorflow(), startup.without_optional_imports():
        from runner.check.checks import CHECKS
        from runner.check.findings import FAILED, findings

    failed = 0
    for finding in findings(cfg, CHECKS):
        secrets.tell(f"{finding.verdict:8} {finding.check}: {finding.text}")
        failed += finding.verdict == FAILED
    secrets.tell(f"{failed} failed" if failed else "nothing failed")
    return int(failed > 0)


def main() -> int:
    """Return the exit code: 0 if nothing failed, 1 otherwise."""
    if {"-m", "--multirun"} & {*sys.argv[1:]}:
        entry.complain(UserError("runner.check looks at one configuration, not at a sweep; leave out -m"))
        return 1
    return entry.main(task)
