# From nothing but Python and make. `make demo` prints the comparison of masks, `make test` is the whole gate.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing here needs the hub; said so, a missing network costs no time-outs.
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Where it is set, every process of the tests would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-oldest test-lm-eval clean

demo: $(VENV)/.demo
	$(BIN)/hf-masking compare --output runs/compare --resume

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow

# Masks, plans and attention know nothing of Transformers: their tests would give the same again.
test-oldest:
	$(MAKE) .venv-oldest/.oldest VENV=.venv-oldest
	.venv-oldest/bin/pytest -q -n 2 --dist worksteal --ignore tests/masks --ignore tests/plan --ignore tests/attention \
	  --ignore tests/adaptive --ignore tests/test_docs.py --ignore tests/test_experiments.py

# In an environment of its own: the harness brings some 50 packages, and Transformers imports scikit-learn if it is there.
test-lm-eval:
	$(MAKE) .venv-lm-eval/.lm-eval VENV=.venv-lm-eval
	.venv-lm-eval/bin/pytest -q tests/test_examples.py -k lm_evaluation

# Without compiling: modules are compiled when they are first imported, and most never are.
# torch is installed first and by its exact version: a range would fetch the build with CUDA.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[plot]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.oldest: pyproject.toml $(VENV)/.torch
	grep -vE '^(transformers|huggingface_hub|hf-xet)==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install -q --no-compile -c $(VENV)/constraints.txt -e '.[test]' 'transformers==5.17.*'
	touch $@

$(VENV)/.lm-eval: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[test]' 'lm_eval[hf]==0.4.13'
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-lm-eval runs
