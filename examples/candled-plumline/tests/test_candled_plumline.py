"""The tests of candled for plugins, also with the recordings in this folder."""

from pathlib import Path

from candled.testing import exchange_tests

from candled_plumline import Plumline

TestPlumline = exchange_tests(Plumline, recordings=Path(__file__).parent)
