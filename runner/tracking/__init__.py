"""Where rows go: through a journal in the run's folder to the recorder process, and from there to MLflow."""

from runner.tracking.client import Mlflow
from runner.tracking.contract import Nothing

__all__ = ["Mlflow", "Nothing"]
