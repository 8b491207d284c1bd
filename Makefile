# The two commands are `make demo` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := examples tests benchmarks scripts experiments ddim_keras
# Half of the tests each, in their order, so that what a file shares is mostly made once. A process that dies, as one did, once,
# is replaced and its test run once more, which the summary counts as a rerun; a test that fails is not.
SHARED := -n 2 --dist worksteal --reruns 1 --only-rerun "^worker .* crashed"
export TF_CPP_MIN_LOG_LEVEL ?= 2
export NO_MKDOCS_2_WARNING ?= 1

# What `make compare` compares with: a commit or tag.
BEFORE ?= HEAD~1

.PHONY: help setup demo test test-slow test-all test-parity test-extras bench compare lint docs notebook clean

help:
	@echo "make demo      train, generate, and write pictures to outputs/demo (about 6 minutes on 2 cores)"
	@echo "make test      run the tests on the TensorFlow and the JAX backend"
	@echo "make test-slow run the slow tests, which make test leaves out"
	@echo "make test-all  run both"
	@echo "make test-parity compare with torch and diffusers, which it installs"
	@echo "make test-extras run exported programs, the server and the page, with the libraries for them"
	@echo "make bench     run the benchmarks"
	@echo "make compare   time a training step and sampling against BEFORE=HEAD~1, in turns"
	@echo "make lint      check style and types"
	@echo "make docs      build the documentation site into site/"
	@echo "make notebook  run the notebook from top to bottom and keep its outputs"
	@echo "PYTHON=python3.12 make ... chooses the interpreter (3.10 to 3.13)"

setup: .venv/ready

# pip comes first: the one that ships with Python 3.10 takes half an hour to choose versions.
# Remade only when what it installs changes. Some systems split venv from python; virtualenv needs only pip.
.venv/ready: setup.cfg requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "Python 3.10 to 3.13 is needed, this is %d.%d: give PYTHON=python3.12, say" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv .venv; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[jax,test,dev,docs]'
	touch .venv/ready

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(SHARED) -m "not slow and not parity and not extras"
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(SHARED) -m "not slow and not parity and not extras"

# With MINUTES=10 each backend begins none after ten.
test-slow: setup
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(SHARED) -m slow $(if $(MINUTES),--minutes $(MINUTES))
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(SHARED) -m slow $(if $(MINUTES),--minutes $(MINUTES))

test-all: test test-slow

# torch and diffusers are installed for these alone.
.venv/parity: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[jax,test,parity]'
	touch .venv/parity

test-parity: .venv/parity
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(SHARED) tests/parity tests/test_inputs.py::test_a_loader_of_pytorch_itself_is_taken
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(SHARED) tests/parity -k "walks or cifar10 or script"

# So are the runtimes of exported programs, what serves images, and other libraries' data sets.
.venv/extras: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[jax,test,test_extras,onnx,openvino,litert,serve,demo,datasets,webdataset]'
	touch .venv/extras

test-extras: .venv/extras
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest tests/extras tests/test_large_data.py
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/extras -k "walk or denoiser"

bench: setup
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/footprint.py

compare: setup
	$(BIN)/python benchmarks/versions.py --before $(BEFORE) --divided

lint: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy ddim_keras

docs: setup
	$(BIN)/python -m mkdocs build --strict

notebook: setup
	$(BIN)/python scripts/run_notebook.py

clean:
	rm -rf .venv outputs site *.egg-info
