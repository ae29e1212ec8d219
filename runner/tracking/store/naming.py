"""An experiment of a tracking store: its name, and its id, made where it is not yet there."""

from __future__ import annotations

import unicodedata
from typing import Any

from runner.errors import UserError

# What a table of MLflow's holds of an experiment's name is 256 characters.
NAME_LENGTH = 250


def experiment_name(name: Any) -> str:
    """Return an experiment's name, which may look like a number; raises UserError for one that no store takes."""
    text = "" if name is None else str(name)
    if not text.strip() or len(text) > NAME_LENGTH or any(unicodedata.category(each) == "Cc" for each in text):
        raise UserError(
            f"tracking.experiment must be a name of 1 to {NAME_LENGTH} characters without control characters,"
            f" got {text[:40]!r} ({len(text)} characters); set it with tracking.experiment=runner"
        )
    return text


def experiment_id(client: Any, name: str, location: str | None) -> str:
    """Return the id of an experiment, which another process may be making at the same moment."""
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
