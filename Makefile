# Everything a person does with this repository. `make help` explains each target.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)

# Programs here import thousands of files each: one process compiles them and the others read that, whatever the environment
# says. In a container, where it is usual to say so, each would compile them anew and start three times as slowly.
unexport PYTHONDONTWRITEBYTECODE

COMPOSE := docker compose $(foreach p,$(or $(PROFILES),core monitoring),--profile $(p))

.PHONY: help setup demo demo-drift up monitoring down status clean worker team-env team-up team-down team-status check coverage test extras test-team bench-mac docs lint lock

help:  ## explain the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with everything pinned

$(STAMP):
	@$(PYTHON) deploy/local/can_install.py "$(or $(MAKECMDGOALS),setup)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (a few minutes the first time)…"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@rm -f $(VENV)/.installed-*; touch $(STAMP)

demo: setup  ## the main job on real images, through the real Airflow, start to served model
	@$(BIN)/python -m examples.demo

demo-drift: setup  ## after demo: another kind of image arrives, and the loop closes
	@$(BIN)/python -m examples.demo_drift

up: setup  ## start the embedded stack (Airflow, MLflow, server, Prometheus, Alertmanager)
	@$(BIN)/python -m deploy.local.stack up

monitoring: setup  ## install Prometheus and Alertmanager with the system's package manager (apt-get as root, or brew); optional
	@$(BIN)/python -m deploy.local.monitoring

down:  ## stop the stack; nothing is lost
	@if test -x $(BIN)/python; then $(BIN)/python -m deploy.local.stack down; else echo "Nothing was running."; fi

status: setup  ## where everything is, and whether it is well
	@$(BIN)/python -m deploy.local.stack status

clean:  ## stop the stack and remove what it kept under .clipft (data sets and models too)
	@if test -x $(BIN)/python; then $(BIN)/python -m deploy.local.stack clean; else rm -rf .clipft; fi

worker:  ## make .venv with what a team's worker needs and no more (on a Mac, a CUDA box, or any other machine)
	@$(PYTHON) deploy/local/can_install.py worker
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable ".[worker]"
	@echo "This machine is ready. Next, with the command that an operator gets from \`clipft worker invite NAME\`:"
	@echo "  $(BIN)/clipft worker join https://HOST:8080 --code …"

team-env: setup  ## a team's deployment: make .env with generated secrets (NAME=host.example.org TLS=1 for one that others reach)
	@$(BIN)/python -m deploy.compose.secrets --host $(or $(NAME),localhost) $(if $(TLS),--tls) $(if $(PLAIN),--plain)

team-up:  ## build and start the team's deployment with Docker Compose
	@test -f .env || { echo "Error: there is no .env with this installation's secrets. Make one: make team-env"; exit 1; }
	@mkdir -p sources deploy/gateway/certificates
	@CLIPFT_REVISION=$$(git rev-parse HEAD 2>/dev/null) $(COMPOSE) up --build --detach --remove-orphans
	@$(MAKE) --no-print-directory team-status

team-down:  ## stop the team's deployment; its volumes stay, nothing is lost
	@$(COMPOSE) down

team-status:  ## the team's deployment: where everything is, and whether it is healthy
	@$(COMPOSE) ps
	@$(COMPOSE) exec airflow-scheduler clipft doctor

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -u -m pytest

# Longest first and three at a time, since each waits for its servers half of the time: whoever is done takes the next, and the others
# give way to the first. By folder, since all of a folder of e2e shares one installation; the files of the others are shared by two
# processes, so that the last one to end does not leave a core idle.
# The folder's name is $$0 of bash, since xargs of macOS puts names into short arguments alone. What failed is said once more at the
# end, where one looks.
LONGEST = e2e/demo e2e/runs behaviour parity
PARTS = $(LONGEST) $(filter-out $(LONGEST),$(sort $(patsubst tests/%/,%,$(dir $(wildcard tests/*/test_*.py tests/*/*/test_*.py)))))
LOGS = build/tests
test: setup  ## every test, from unit to end to end (but test-team and the marked long runs); each line begins with its folder
	@mkdir -p $(LOGS) && rm -f $(LOGS)/*.log
	@printf '%s\n' $(PARTS) | xargs -P 3 -n 1 \
	  bash -o pipefail -c 'case "$$0" in behaviour | parity | data | unit) set -- --numprocesses 2 --dist loadfile;; esac; \
	  [ "$$0" = $(firstword $(LONGEST)) ] || renice -n 3 $$$$ >/dev/null; $(PYTEST) --durations 25 "$$@" "tests/$$0" 2>&1 | tee "$(LOGS)/$${0////-}.log" | awk -v part="$$0" "{print part \": \" \$$0; fflush()}"'; \
	ended=$$?; for part in $(subst /,-,$(PARTS)); do grep -hE "^(FAILED|ERROR) " $(LOGS)/$$part.log; echo "$$part: $$(tail -n 1 $(LOGS)/$$part.log)"; done; exit $$ended

LINT = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

check: setup  ## what to run before a commit: lint, and the unit and data tests that need no service, in minutes
	@mkdir -p $(LOGS); { $(LINT); } >$(LOGS)/lint.log 2>&1 & lint=$$!; \
	$(PYTEST) --numprocesses 2 --dist loadfile -m "not slow and not team and not product and not extras" tests/unit tests/data; tests=$$?; \
	wait $$lint; lint=$$?; cat $(LOGS)/lint.log; exit $$((tests | lint))

coverage: setup  ## the lines that the tests of `make check` run, by file; apart from it, since counting makes them slower
	@$(PYTEST) --numprocesses 2 --dist loadfile -m "not slow and not team and not product and not extras" \
	  --cov clipft_tasks --cov serving --cov-report term:skip-covered tests/unit tests/data

extras: setup  ## each extra installed alone, from the package index
	@$(PYTEST) -m extras tests/unit/test_extras.py

test-team: setup  ## the team's deployment as plain processes in network namespaces (Linux, root; many minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m team tests/team

# caffeinate keeps a Mac awake for as long as it runs.
bench-mac: setup  ## on a Mac: what only a Mac can show, in 15 minutes, as a page that says what to send where (QUICK=1: 3 minutes, anywhere)
	@$(shell command -v caffeinate >/dev/null && echo caffeinate -i) $(BIN)/python -m bench.mac $(if $(QUICK),--quick)

docs: setup  ## the documentation site, into build/docs, without network; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open build/docs/index.html."

lint: setup  ## ruff, mypy, and the contracts about imports
	@$(LINT)

lock:  ## resolve pyproject.toml anew, for macOS and Linux at once
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --all-extras pyproject.toml -o requirements.lock
