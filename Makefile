# make demo      install, then train and generate images, audio and video on the built-in data (about 10 minutes on 2 cores)
# make test      lint and the tests (at most 8 minutes on 2 cores)
# make test-all  every test, the long ones included
# make lint      style only;  make format  mend the style
#
# PYTHON=python3.12 chooses the interpreter, VENV=folder the virtual environment, ARGS="audio --minutes 30" goes to the demo.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
SPREAD := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all lint format
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(RUN) -m mmldm.commands.cli demo $(ARGS)

test: lint
	$(RUN) -m pytest $(SPREAD)

test-all: lint
	$(RUN) -m pytest $(SPREAD) -m ""

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

$(VENV)/.installed: pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet -e ".[dev,text,pretrained]"
	touch $(VENV)/.installed $@

$(RUN):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "mmldm wants Python 3.11 or newer, got '$(PYTHON)'; install one or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv $(VENV)
