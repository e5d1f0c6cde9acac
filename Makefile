# The commands of the book. Each creates what it needs; see README.md.

# macOS has 3.81. It knows no .SHELLFLAGS: recipes would go on after an error.
ifneq ($(filter 0.% 1.% 2.% 3.%,$(MAKE_VERSION)),)
$(error GNU make 4 is needed, this is $(MAKE_VERSION). On macOS: brew install make, then gmake)
endif

comma := ,
# Of the folder itself: make's own functions would take a name with a space for two.
here := $(shell pwd)
ifneq ($(findstring :,$(here)),)
$(error this folder has a colon in its name, $(here), at which Python and the shell cut paths: rename it)
endif
# A repository that happens to be around this folder is another project's.
export GIT_CEILING_DIRECTORIES := $(shell dirname "$(here)")
# What is read and written is UTF-8, whatever the locale says.
export PYTHONUTF8 := 1
PYTHON ?= python3
PORT ?= 8000
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
HTML := _build/html
# Some of the programs share code with the extensions.
PROGRAM = PYTHONPATH="$(CURDIR):$(CURDIR)/book/_ext" $(BIN)/python book/_programs
JUPYTER_BOOK = $(BIN)/jupyter-book build book --config _config.yml --toc "$(CURDIR)/_toc.yml" \
  --path-output .
# The GPU is asked for before anything is installed.
HAS_GPU := $(shell [[ "$$(timeout 60 nvidia-smi -L 2>/dev/null)" == *GPU* ]] && echo yes)
EXTRAS := book,test$(if $(HAS_GPU),$(comma)gpu)
INSTALLED := $(VENV)/.installed-$(if $(HAS_GPU),gpu,cpu)
# What $(VENV) holds in the end, and what installing it takes besides.
GIGABYTES := $(if $(HAS_GPU),12,5)
stop = { echo "make: $(1)" >&2; exit 1; }
# In front of the share in use, since the name of the disk may be of several words.
free_kilobytes = $$(df -Pk "$(1)" | awk 'NR == 2 { sub(/ [0-9-]+%.*/, ""); print $$NF }')

export PYTHONPATH := $(CURDIR)

.NOTPARALLEL:
.PHONY: book test test-fast serve lint format lock summary changed colab publish pdf linkcheck clean \
  bench gpu-check on-linux required-gpu sound-environment built found-python own-repository

book: on-linux required-gpu $(INSTALLED)
	@mkdir -p _build
	@# Without the lines of TensorFlow's start-up log that no setting turns off.
	@$(BIN)/python -m tpcnn $(if $(HAS_GPU),--has-gpu) \
	  2> >(grep --line-buffered -vE 'absl::InitializeLog|^I[0-9]{4} ' >&2)
	@# Sphinx does not read again what it has read, be it wrong: a build that failed or was
	@# killed leaves the mark, and the next one reads every chapter, executed ones from the cache.
	@[[ ! -e _build/.unfinished ]] || rm -rf _build/.doctrees
	@touch _build/.unfinished
	@start=$$SECONDS; \
	if ! $(JUPYTER_BOOK) -W -n --keep-going 2>&1 | $(PROGRAM)/progress.py; then \
	  $(call stop,the book did not build: see above$(comma) or _build/build.log. What ran is kept.); \
	fi; \
	rm -rf _build/jupyter; \
	if ! $(JUPYTER_BOOK) -W -n --keep-going --builder custom --custom-builder jupyter \
	      >_build/notebooks.log 2>&1 || ! $(PROGRAM)/plain_notebooks.py; then \
	  $(call stop,the notebooks for Colab were not written: see _build/notebooks.log or above.); \
	fi; \
	rm _build/.unfinished; \
	find _build/executed -mindepth 1 -maxdepth 1 -mtime +90 -exec rm -r {} +; \
	echo "Built in $$((SECONDS - start)) s: $(CURDIR)/$(HTML)/index.html"

on-linux:
	@system=$$(uname -s); [[ "$$system" == Linux ]] \
	  || $(call stop,the book is built on Linux or in WSL$(comma) and this is $$system.)

required-gpu:
	@[[ "$${TPCNN_REQUIRE_GPU:-0}" == 0 || -n "$(HAS_GPU)" ]] \
	  || $(call stop,TPCNN_REQUIRE_GPU is set$(comma) but nvidia-smi finds no GPU on this machine.)

built:
	@[[ -d $(HTML)/notebooks ]] || $(call stop,there is no book yet: run make book first.)

found-python:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	  || $(call stop,Python 3.11 to 3.13 is needed: set PYTHON=/path/to/python3.12 or install it.)
	@"$(PYTHON)" -c 'import venv$(comma) ensurepip' 2>/dev/null \
	  || $(call stop,$(PYTHON) lacks its venv module: on Debian or Ubuntu install python3-venv.)

own-repository:
	@git rev-parse --git-dir >/dev/null 2>&1 \
	  || $(call stop,this needs git$(comma) and a clone of the book: an unpacked archive has no branches.)

test: book
	$(BIN)/python -m pytest tests -n 2 --dist loadfile

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -m "not book and not network"

serve: built $(INSTALLED)
	@$(BIN)/python -c 'import socket, sys; socket.create_server(("127.0.0.1", int(sys.argv[1])))' \
	  "$(PORT)" 2>/dev/null \
	  || $(call stop,port $(PORT) is in use or not allowed: choose another$(comma) such as make serve PORT=8123.)
	$(BIN)/python -m http.server "$(PORT)" --bind 127.0.0.1 --directory $(HTML)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mdformat --check --wrap=keep --number book

# What lint complains of, as far as a program can mend it.
format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mdformat --wrap=keep --number book

lock: found-python
	"$(PYTHON)" -m venv _build/lock
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
	@$(PROGRAM)/gpu_check.py

# The results of the last build, as Markdown. It needs no installation, which may have failed.
summary:
	@"$(PYTHON)" book/_programs/results.py

# What a reader of the published pages would find changed in this build of them.
changed: own-repository $(INSTALLED)
	@rm -rf _build/published && mkdir -p _build/published
	@status=0; git ls-remote --exit-code origin gh-pages >_build/published.log 2>&1 || status=$$?; \
	if (( status == 2 )); then echo "Nothing is published yet."; exit; fi; \
	git fetch --quiet origin gh-pages; \
	git archive FETCH_HEAD | tar --extract --directory _build/published; \
	$(PROGRAM)/changed_pages.py _build/published $(HTML)

# The published notebooks, run in an environment with Colab's versions of what tpcnn needs. Of the
# lab it is the solved one; the student's has blanks.
NOTEBOOKS ?= $(filter-out lab,$(basename $(notdir $(wildcard $(HTML)/notebooks/*.ipynb))))
colab: built found-python
	"$(PYTHON)" -m venv --clear _build/colab
	_build/colab/bin/pip install --quiet --requirement tests/colab.txt
	PYTHONPATH= _build/colab/bin/python book/_programs/run_notebooks.py \
	  $(NOTEBOOKS:%=$(HTML)/notebooks/%.ipynb)

# The whole book as one PDF, printed by Chromium.
pdf: built $(INSTALLED)
	@$(PROGRAM)/pdf.py

# Whether the links to other sites still lead somewhere. It needs the network.
linkcheck: built $(INSTALLED)
	$(JUPYTER_BOOK) --builder linkcheck

# HTML and notebooks to the branch gh-pages, in one commit.
publish: built own-repository sound-environment
	@# A shallow clone knows nothing of the branch, and what is pushed must follow what is there.
	@if git ls-remote --exit-code origin gh-pages >/dev/null; then \
	  git fetch --quiet --depth 1 origin +refs/heads/gh-pages:refs/remotes/origin/gh-pages; \
	fi
	$(BIN)/ghp-import --no-jekyll --push --message "Book of $$(git rev-parse --short HEAD)" $(HTML)

clean:
	rm -rf _build $(VENV)

# The programs in an environment begin with the path of its Python, which is another one after the
# folder was moved; a new version of Python looks for packages elsewhere.
sound-environment:
	@[[ ! -L $(BIN)/python || -e $(BIN)/python ]] && { [[ ! -e $(BIN)/pip ]] || { \
	    [[ "$$(sed -nE '1,2s|^[^/]*(/.*)/python[^/]*$$|\1|p' $(BIN)/pip)" -ef $(BIN) ]] \
	    && $(BIN)/python -c 'import pip' 2>/dev/null; }; } \
	  || $(call stop,$(VENV) was moved$(comma) or its Python is gone: rm -rf $(VENV)$(comma) then make again.)

$(INSTALLED): pyproject.toml constraints.txt | sound-environment found-python
	@mkdir -p _build $(VENV)
	@# What is there already, be it of an installation that was interrupted, takes no more space.
	@there=$$(du -sk $(VENV)/ | cut -f1); free=$(call free_kilobytes,$(VENV)); \
	(( there + free > $(GIGABYTES) * 1000000 )) \
	  || $(call stop,not enough disk space: $(VENV) takes $(GIGABYTES) GB$(comma) $$((free / 1000000)) GB are free.)
	@echo "Installing into $(VENV) what constraints.txt lists (once; a few minutes)"
	@{ "$(PYTHON)" -m venv $(VENV) && $(BIN)/pip install --disable-pip-version-check --retries 2 \
	    --timeout 20 --no-input --constraint constraints.txt --editable '.[$(EXTRAS)]'; } 2>&1 \
	  | tee _build/install.log \
	  | { grep --line-buffered -oE '^ *(Downloading|Using cached|Installing collected) .{0,60}' || true; } \
	  || if ! grep -qE 'No space left|Disk quota|No usable temporary' _build/install.log; \
	    then $(call stop,pip could not install the packages; is the network up? See _build/install.log); \
	    elif (( $(call free_kilobytes,$${TMPDIR:-/tmp}) < $(call free_kilobytes,$(VENV)) )); \
	    then $(call stop,the folder for temporary files$(comma) $${TMPDIR:-/tmp}$(comma) is full: set TMPDIR to one with room.); \
	    else $(call stop,the disk is full: $(VENV) takes $(GIGABYTES) GB.); \
	    fi
	@touch $@
