"""The name of an experiment in a tracking store, and its id."""

from __future__ import annotations

import unicodedata
from typing import Any

from runner.errors import UserError

# A table of MLflow's holds 256 characters of an experiment's name.
NAME_LENGTH = 250


def experiment_name(name: Any) -> str:
    """Return an experiment's name, which may look like a number; raises UserError for a name that no store accepts."""
    text = "" if name is None else str(name)
    if not text.strip() or len(text) > NAME_LENGTH or any(unicodedata.category(each) == "Cc" for each in text):
        raise UserError(
            f"tracking.experiment must be a name of 1 to {NAME_LENGTH} characters without control characters,"
            f" got {text[:40]!r} ({len(text)} characters); set it with tracking.experiment=runner"
        )
    return text


def experiment_id(client: Any, name: str, location: str | None) -> str:
    """Return the id of an experiment, and create it if it is missing; another process may do so at the same moment.

    Raises UserError for a deleted experiment.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise UserError(f"tracking.experiment {name!r} was deleted; restore it or set tracking.experiment=another")
    return found.experiment_id
