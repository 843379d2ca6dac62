# Two commands need nothing but Python >= 3.11 and make: `make demo` and `make test`. Each makes .venv first.
PYTHON ?= python3
BIN := .venv/bin
CLUSTER ?= cluster

.PHONY: demo test slow soak cluster gpu check notebooks site lock clean

demo: .venv/installed
	$(BIN)/weakseg demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not cluster"

# Minutes of kills, signals, full disks and moved directories at random moments; docs/reliability.md has the figures.
soak: .venv/installed
	PYTHONPATH=tests:. $(BIN)/python tests/soak.py --minutes 10

# A SLURM of two nodes on this machine, started and ended by the tests (as root; Debian's packages).
cluster: .venv/installed
	command -v slurmctld > /dev/null || { apt-get update -qq && apt-get install -qq -y slurm-wlm munge > /dev/null; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[cluster]'
	$(BIN)/python -m pytest -m "$(CLUSTER)"

# At most ten minutes on the GPU at hand: every method, the speed of two networks; one line where there is none.
gpu: .venv/installed
	$(BIN)/python -m experiments.benchmarks.gpu --output experiments/results/gpu.md

check: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Run the notebooks and keep what they show, after a change of their cells: a quarter of an hour on two cores.
notebooks: .venv/installed
	$(BIN)/python experiments/notebooks/execute.py

# The pages, the results and the API reference as a site, in site/index.html.
site: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# uv installs in a third of pip's time; bytecode at once, or every first start is slow.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "weakseg needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

# New tested versions: newest that resolve, as plain name==version lines (an index address must not get in).
lock: .venv/installed
	$(BIN)/uv pip install --quiet --upgrade --editable '.[dev,docs,notebooks]'
	$(BIN)/uv pip freeze --exclude-editable | grep '^[A-Za-z0-9_.-]*==' > constraints.txt

clean:
	rm -rf .venv runs demo site
