"""What pytest-tornado serves for tests of the API."""

from tests.api.stage import app, stage, stage_options

__all__ = ["app", "stage", "stage_options"]
