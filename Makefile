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
HAS_GPU := $(shell [[ "$$(nvidia-smi -L 2>/dev/null)" == *GPU* ]] && echo yes)
EXTRAS := book,test$(if $(HAS_GPU),$(comma)gpu)
INSTALLED := $(VENV)/.installed-$(if $(HAS_GPU),gpu,cpu)
GIGABYTES := $(if $(HAS_GPU),12,5)
stop = { echo "make: $(1)" >&2; exit 1; }

export PYTHONPATH := $(CURDIR)

.NOTPARALLEL:
.PHONY: book test test-fast serve lint lock clean required-gpu

book: required-gpu $(INSTALLED)
	@# Without the lines of TensorFlow's start-up log that no setting turns off.
	@$(BIN)/python -m tpcnn $(if $(HAS_GPU),--has-gpu) \
	  2> >(grep --line-buffered -vE 'absl::InitializeLog|^I[0-9]{4} ' >&2)
	@mkdir -p _build
	@# Sphinx does not read again what it has read, be it wrong: a build that failed or was
	@# killed leaves the mark, and the next one reads every chapter, executed ones from the cache.
	@[[ ! -e _build/.unfinished ]] || rm -rf _build/.doctrees
	@touch _build/.unfinished
	@set -eo pipefail; start=$$SECONDS; \
	if ! $(BIN)/jupyter-book build book --config _config.yml --toc "$(CURDIR)/_toc.yml" --path-output . \
	    -W -n --keep-going 2>&1 | $(BIN)/python -u book/_ext/progress.py; then \
	  $(call stop,the book did not build: see above$(comma) or _build/build.log. What ran is kept.); \
	fi; \
	rm _build/.unfinished; \
	echo "Built in $$((SECONDS - start)) s: $(CURDIR)/$(HTML)/index.html"

required-gpu:
	@[[ "$${TPCNN_REQUIRE_GPU:-0}" == 0 || -n "$(HAS_GPU)" ]] \
	  || $(call stop,TPCNN_REQUIRE_GPU is set$(comma) but nvidia-smi finds no GPU on this machine.)

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

lock:
	$(PYTHON) -m venv _build/lock
	_build/lock/bin/pip install --quiet uv
	_build/lock/bin/uv pip compile --upgrade --universal --python-version 3.11 --all-extras \
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
	@set -eo pipefail; $(BIN)/pip install --disable-pip-version-check --retries 2 --timeout 20 --no-input \
	    --constraint constraints.txt --editable '.[$(EXTRAS)]' 2>&1 \
	  | tee _build/install.log \
	  | { grep --line-buffered -oE '^ *(Downloading|Using cached|Installing collected) .{0,60}' || true; } \
	  || if grep -q 'No space left' _build/install.log; \
	    then $(call stop,the disk is full: $(VENV) or the folder for temporary files has no space.); \
	    else $(call stop,pip could not install the packages; is the network up? See _build/install.log); \
	    fi
	@touch $@
