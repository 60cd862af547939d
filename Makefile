# make            lists the targets
# make up         starts the cluster on this machine
# make lint types docs test   runs the checks of .ci/run

PYTHON ?= python3
NODES  ?= 3
BIN    := .venv/bin

# With -j, several targets would build the same .venv at the same time.
.NOTPARALLEL:
.PHONY: help up rolling-restart down status logs test pictures chaos bench fuzz mutants lint types docs release sbom constraints

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

up: .venv/stack.done ## start the cluster, or scale it: NODES=3, or NODES=max for one per core; REDIS=cluster
	@$(BIN)/python -m stack up $(NODES)

rolling-restart: .venv/stack.done ## restart the nodes one after the other; no client is rejected
	@$(BIN)/python -m stack restart

down: .venv/stack.done ## stop the cluster
	@$(BIN)/python -m stack down

status: .venv/stack.done ## show nodes, health, addresses
	@$(BIN)/python -m stack status

logs: .venv/stack.done ## follow all logs
	@$(BIN)/python -m stack logs

test: .venv/dev.done ## run all tests; ARGS= goes to pytest, e.g. ARGS="-k hub -x"
	@$(PYTHON) -m stack.need redis-server haproxy chromium nodejs npm iproute2 nftables prometheus
	@$(BIN)/pytest $(ARGS)

pictures: .venv/dev.done ## take the README's screenshots with the browser tests
	@$(PYTHON) -m stack.need redis-server haproxy chromium
	@PICTURES=docs/images $(BIN)/pytest -n 0 -m picture tests/browser

chaos: .venv/dev.done ## break a private cluster on purpose; SEED= MINUTES= FAULTS= QUICK=1 CLIENTS= CLIENT=centrifugo FSYNC= REDIS=sentinel|cluster WAIT= HOSTS=1
	@$(PYTHON) -m stack.need redis-server haproxy iproute2 nftables
	@$(BIN)/python -m chaos

bench: .venv/dev.done ## compare with Centrifugo (if on the PATH), peers and the C limit: SCENARIOS= ROUNDS= QUICK=1
	@$(PYTHON) -m stack.need redis-server haproxy nodejs npm gcc libc6-dev
	@$(BIN)/python -m bench

fuzz: .venv/dev.done ## random hostile input; SEED= MINUTES=5 TARGETS="frames sockets" or simulation; ROUND=
	@$(PYTHON) -m stack.need redis-server nodejs
	@$(BIN)/python -m fuzz

mutants: .venv/dev.done ## random small faults that tests should notice; SEED=1 COUNT=120 FILES=core QUICK=1 TREE=../other JOBS=
	@$(PYTHON) -m stack.need redis-server haproxy nodejs
	@$(BIN)/python -m mutants

lint: .venv/dev.done ## check style, import rules, haproxy.cfg in all its variants
	@$(PYTHON) -m stack.need haproxy openssl
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	haproxy/check.sh

types: .venv/dev.done ## run mypy --strict
	$(BIN)/mypy --strict

docs: .venv/dev.done ## build the documentation as a site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

release: .venv/release.done ## build and check the packages in dist/; uploads nothing
	@$(PYTHON) -m stack.need nodejs npm
	@rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	cd gateway/static/client && npm pack --pack-destination "$(CURDIR)/dist"
	@$(MAKE) --no-print-directory sbom

sbom: .venv/release.done ## write dist/sbom.json: the packages of the image (CycloneDX)
	@mkdir -p dist
	$(BIN)/cyclonedx-py requirements constraints.txt --output-reproducible --output-file dist/sbom.json

constraints: ## write constraints.txt: the newest versions of the packages that a node needs
	@rm -rf build/constraints
	@$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --disable-pip-version-check '.[server]'
	@(echo "# The versions in the image of a node; make constraints renews them."; \
	  build/constraints/bin/pip freeze --exclude websocket-gateway-cluster) > build/constraints.txt
	@mv build/constraints.txt constraints.txt

# If pyproject.toml is newer than these marker files, update the environment.
.venv/stack.done: pyproject.toml
	@$(call install,stack)

.venv/dev.done: pyproject.toml
	@$(call install,dev)
	@touch .venv/stack.done  # dev includes it

.venv/release.done: pyproject.toml
	@$(call install,release)

define install
$(PYTHON) -m stack.need python3-venv
test -x $(BIN)/python || $(PYTHON) -m venv .venv
echo "Installing Python packages ..."
$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(1)]'
touch .venv/$(1).done
endef
