"""Writes to an MLflow run: metrics, and pictures as artifacts."""

import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from attnhook.monitoring.writers import import_library, safe_tag

_BATCH = 1000  # the most metrics that MLflow takes in one request


class MlflowWriter:
    """MLflow: metrics under their tags, pictures as artifacts `attention/overlay/0/step-00000100.jpg`, texts likewise.

    Args:
        run_id: Your run, which `close` leaves open; None takes the active run at the first write, or creates one.
        tracking_uri: The store, such as a server, or `sqlite:///mlflow.db`; None takes MLflow's own setting. Plain files (`file:///...`) are
            refused by recent versions of MLflow unless the environment has `MLFLOW_ALLOW_FILE_STORE=true`.
        experiment: The experiment of a run that is created.

    Raises:
        MissingPackageError: If MLflow is not installed; mlflow-skinny is enough, with sqlalchemy and alembic for SQLite.
    """

    def __init__(
        self, run_id: str | None = None, *, tracking_uri: str | None = None, experiment: str = "Default"
    ) -> None:
        self._mlflow = import_library("mlflow", needed_by="MlflowWriter", extra="mlflow")
        self._uri, self._experiment = tracking_uri, experiment
        self._run_id, self._started = run_id, False
        self._cached_client: Any = None

    @property
    def run_id(self) -> str | None:
        """The run that is written to; None before the first write if none was given."""
        return self._run_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        now = int(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(safe_tag(tag), value, now, step) for tag, value in values.items()]
        client = self._client()
        for first in range(0, len(metrics), _BATCH):
            client.log_batch(self._run_id, metrics=metrics[first : first + _BATCH])

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Store a picture as an artifact."""
        self._client().log_image(self._run_id, picture.convert("RGB"), f"{safe_tag(tag)}/step-{step:08d}.jpg")

    def text(self, tag: str, text: str, step: int) -> None:
        """Store a text as an artifact."""
        self._client().log_text(self._run_id, text, f"{safe_tag(tag)}/step-{step:08d}.txt")

    def close(self) -> None:
        """End the run if this writer created it."""
        if self._started:
            self._client().set_terminated(self._run_id)
            self._started = False

    def _client(self) -> Any:
        if self._cached_client is None:
            self._cached_client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        active = self._mlflow.active_run() if self._run_id is None else None
        if active is not None:
            self._run_id = active.info.run_id
        if self._run_id is None:
            found = self._cached_client.get_experiment_by_name(self._experiment)
            number = self._cached_client.create_experiment(self._experiment) if found is None else found.experiment_id
            self._run_id = self._cached_client.create_run(number).info.run_id
            self._started = True
        return self._cached_client
