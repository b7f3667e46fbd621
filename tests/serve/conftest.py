"""What pytest-tornado serves for tests that need a store."""

from tests.api.stage import app, stage, stage_options

__all__ = ["app", "stage", "stage_options"]
