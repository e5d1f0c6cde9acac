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
JUPYTER_BOOK = $(BIN)/jupyter-book build book --config _config.yml --toc "$(CURDIR)/_toc.yml" \
  --path-output .
# The GPU is asked for before anything is installed.
HAS_GPU := $(shell [[ "$$(nvidia-smi -L 2>/dev/null)" == *GPU* ]] && echo yes)
EXTRAS := book,test$(if $(HAS_GPU),$(comma)gpu)
INSTALLED := $(VENV)/.installed-$(if $(HAS_GPU),gpu,cpu)
GIGABYTES := $(if $(HAS_GPU),12,5)
stop = { echo "make: $(1)" >&2; exit 1; }

export PYTHONPATH := $(CURDIR)

.NOTPARALLEL:
.PHONY: book test test-fast serve lint lock summary changed colab publish pdf linkcheck clean required-gpu \
  bench gpu-check

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
	if ! $(JUPYTER_BOOK) -W -n --keep-going 2>&1 | $(BIN)/python -u book/_ext/progress.py; then \
	  $(call stop,the book did not build: see above$(comma) or _build/build.log. What ran is kept.); \
	fi; \
	rm -rf _build/jupyter; \
	if ! $(JUPYTER_BOOK) -W -n --keep-going --builder custom --custom-builder jupyter \
	      >_build/notebooks.log 2>&1 || ! $(BIN)/python book/_ext/plain_notebooks.py; then \
	  $(call stop,the notebooks for Colab were not written: see _build/notebooks.log or above.); \
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

# Ours beside model.fit and, where it is installed, PyTorch: _build/bench.md and bench.json.
bench: $(INSTALLED)
	@$(BIN)/python -m tpcnn.bench $(BENCH_OPTIONS)

# The whole book and the bench on a GPU, then a table; it fails where the GPU was not used.
gpu-check:
	@[[ -n "$(HAS_GPU)" ]] \
	  || $(call stop,gpu-check needs a GPU$(comma) but nvidia-smi finds none on this machine.)
	@TPCNN_REQUIRE_GPU=1 $(MAKE) book
	@$(MAKE) bench BENCH_OPTIONS="--images 50000 --to-accuracy"
	@$(BIN)/python tests/gpu_check.py

# The results of the last build, as Markdown.
summary:
	@$(PYTHON) tests/summary.py

# What a reader of the published pages would find changed in this build of them.
changed: $(INSTALLED)
	@rm -rf _build/published && mkdir -p _build/published
	@status=0; git ls-remote --exit-code origin gh-pages >_build/published.log 2>&1 || status=$$?; \
	if (( status == 2 )); then echo "Nothing is published yet."; exit; fi; \
	git fetch --quiet origin gh-pages; \
	git archive FETCH_HEAD | tar --extract --directory _build/published; \
	$(BIN)/python tests/changed_pages.py _build/published $(HTML)

# The published notebooks, run in an environment with Colab's versions of what tpcnn needs. Of the
# lab it is the solved one; the student's has blanks.
NOTEBOOKS ?= $(filter-out lab,$(basename $(notdir $(wildcard $(HTML)/notebooks/*.ipynb))))
colab:
	@[[ -d $(HTML)/notebooks ]] || $(call stop,there are no notebooks yet: run make book first.)
	$(PYTHON) -m venv --clear _build/colab
	_build/colab/bin/pip install --quiet --requirement tests/colab.txt
	PYTHONPATH= _build/colab/bin/python tests/run_notebooks.py \
	  $(NOTEBOOKS:%=$(HTML)/notebooks/%.ipynb)

# The whole book as one PDF, printed by Chromium.
pdf:
	@[[ -f $(HTML)/index.html ]] || $(call stop,there is no book yet: run make book first.)
	@$(BIN)/python book/_ext/pdf.py

# Whether the links to other sites still lead somewhere. It needs the network.
linkcheck: $(INSTALLED)
	$(JUPYTER_BOOK) --builder linkcheck

# HTML and notebooks to the branch gh-pages, in one commit.
publish:
	@[[ -d $(HTML)/notebooks ]] || $(call stop,there is no book yet: run make book first.)
	@# A shallow clone knows nothing of the branch, and what is pushed must follow what is there.
	@if git ls-remote --exit-code origin gh-pages >/dev/null; then \
	  git fetch --quiet --depth 1 origin +refs/heads/gh-pages:refs/remotes/origin/gh-pages; \
	fi
	$(BIN)/ghp-import --no-jekyll --push --message "Book of $$(git rev-parse --short HEAD)" $(HTML)

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
