# The commands of the book. Each creates what it needs; see README.md.

comma := ,
PYTHON ?= python3
PORT ?= 8000
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
HTML := _build/html
# The GPU is asked for before anything is installed.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
EXTRAS := book,test$(if $(HAS_GPU),$(comma)gpu)
INSTALLED := $(VENV)/.installed-$(if $(HAS_GPU),gpu,cpu)
GIGABYTES := $(if $(HAS_GPU),12,5)
stop = { echo "make: $(1)" >&2; exit 1; }

.PHONY: book test test-fast serve lint lock clean required-gpu

book: required-gpu $(INSTALLED)
	@$(BIN)/python -m tpcnn
	@mkdir -p _build
	@start=$$SECONDS; \
	if ! $(BIN)/jupyter-book build book --config _config.yml --toc "$(CURDIR)/_toc.yml" --path-output . \
	    -W -n --keep-going 2>&1 | $(BIN)/python -u book/_ext/progress.py; then \
	  rm -rf _build/.doctrees; \
	  $(call stop,the book did not build: see the warnings above. What was executed is kept.); \
	fi; \
	echo "Built in $$((SECONDS - start)) s: $(CURDIR)/$(HTML)/index.html"

required-gpu:
	@[[ "$${TPCNN_REQUIRE_GPU:-}" != 1 || -n "$(HAS_GPU)" ]] \
	  || $(call stop,TPCNN_REQUIRE_GPU=1$(comma) but nvidia-smi finds no GPU on this machine.)

test: book
	$(BIN)/python -m pytest tests

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest tests -m "not book"

serve: $(INSTALLED)
	@[[ -f $(HTML)/index.html ]] || $(call stop,there is no book yet: run make book first.)
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(HTML)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lock: $(INSTALLED)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --upgrade --universal --python-version 3.11 --all-extras \
	  --no-annotate --no-header --quiet pyproject.toml --output-file constraints.txt

clean:
	rm -rf _build $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	  || $(call stop,Python 3.11 to 3.13 is needed: set PYTHON=/path/to/python3.12 or install it.)
	@$(PYTHON) -c 'import venv$(comma) ensurepip' 2>/dev/null \
	  || $(call stop,$(PYTHON) lacks its venv module: on Debian or Ubuntu install python3-venv.)
	@(( $$(df -Pk . | awk 'NR == 2 { print $$4 }') > $(GIGABYTES) * 1000000 )) \
	  || $(call stop,not enough disk space here: $(GIGABYTES) GB are needed for $(VENV).)
	@mkdir -p _build
	@echo "Installing into $(VENV) what constraints.txt lists (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check --retries 2 --timeout 20 --no-input \
	    --constraint constraints.txt --editable '.[$(EXTRAS)]' 2>&1 \
	  | tee _build/install.log \
	  | awk '/Downloading|Installing collected/ { print "  " substr($$0, 1, 78); fflush() }' \
	  || $(call stop,pip could not install the packages; is the network up? See _build/install.log)
	@touch $@
