# Thin: each target is what the README writes out for people without make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests start hundreds of programs: without compiled files each of them would compile candled again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run check quick test lowest lint bench soak chaos autobahn bots

run: $(VENV)/.run  ## install and start the demo: recorded market data, a chart on http://localhost:7000/
	$(BIN)/candled demo

check: $(VENV)/.lint $(VENV)/.test  ## a change so far: lint, types, and the tests that need nothing but Python
	$(MAKE) --no-print-directory -j2 lint quick

quick: $(VENV)/.test  ## the tests that need nothing but Python
	$(BIN)/python -m pytest -q -n auto --dist worksteal --quick

test: $(VENV)/.test  ## install the test extra and run the whole suite, in parallel
	$(BIN)/python -m pytest -n auto --dist worksteal --cov

lowest: .lowest/.test  ## the tests that need nothing but Python, with the lowest versions of all requirements
	.lowest/bin/python -m pytest -q -n auto --dist worksteal --quick

lint: $(VENV)/.lint  ## formatting, lint, spelling and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files -z | xargs -0 $(BIN)/codespell
	$(BIN)/mypy

bench: $(VENV)/.test  ## the figures of bench/README.md
	$(BIN)/python -m bench

soak: $(VENV)/.test  ## the long forms of the reliability tests
	CANDLED_TEST_LONG=1 CANDLED_TEST_BROWSER_SECONDS=300 $(BIN)/python -m pytest tests --ignore tests/chaos -s

chaos: $(VENV)/.test  ## two hundred faults at several processes, Redis and PostgreSQL
	CANDLED_TEST_LONG=1 $(BIN)/python -m pytest tests/chaos -s

autobahn: .autobahn/bin/wstest  ## the WebSocket conformance suite, for tests/serve/test_autobahn.py; needs Python 2.7

PYTHON2 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/2.7*/bin/python2.7) python2.7)

.autobahn/bin/wstest: $(VENV)/.venv
	$(BIN)/python -m pip install --quiet "virtualenv<20.22"
	$(BIN)/python -m virtualenv --quiet --python $(PYTHON2) .autobahn
	.autobahn/bin/python -m pip install --quiet "autobahntestsuite<25"

bots: .bots/freqtrade/.installed .bots/nautilus_trader/.installed  ## programs that read Binance, for tests/system/test_bots.py; about 1.5 GB

.bots/%/.installed:
	$(PYTHON) -m venv .bots/$*
	.bots/$*/bin/python -m pip install --quiet --no-compile $*  # most of it is never imported
	touch $@

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.venv setup.py
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.venv setup.py
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

.lowest/.test: setup.py constraints-lowest.txt
	$(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet --editable ".[test]" --constraint constraints-lowest.txt
	touch $@

$(VENV)/.lint: $(VENV)/.venv setup.py
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	touch $@
