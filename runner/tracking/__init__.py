"""Where rows go: through a journal in the run's folder to the recorder process, and from there to MLflow."""

from runner.tracking.client import mlflow
from runner.tracking.contract import none

__all__ = ["mlflow", "none"]
