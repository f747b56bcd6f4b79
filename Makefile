# spancat-daemon: `make demo` shows it at work, `make test` proves it. Needs make, bash and Python 3.11 or newer;
# everything else comes into .venv, exactly as requirements.lock pins it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup tools demo test faults fuzz reliability soak lint coverage bench lock clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The interpreter that the environment is made with; the first one that is there and new enough is taken.
PYTHON ?= python3.11
CANDIDATES := $(PYTHON) python3 python3.13 python3.12

# More arguments for the program that a target runs: make demo ARGS=--keep, make test ARGS='-k retention -x'
ARGS ?=

# How many tests run side by side; 0: one after another, as --pdb needs it. By default half as many again as there are
# processors: a third of the time, a test waits for a process or a clock.
WORKERS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## the environment in .venv, as requirements.lock pins it

# Debian's packages that tests and benchmarks drive; what is missing they skip, and name. As it is where it is there:
# a test suite has no business upgrading a machine.
TEST_TOOLS := strace valgrind gcc libc6-dev util-linux e2fsprogs xfsprogs btrfs-progs systemd dbus polkitd logrotate rsync curl openssl
BENCH_TOOLS := inotify-tools lsyncd restic borgbackup

tools:  ## as root on Debian: the programs that tests and benchmarks drive besides Python's
	@export DEBIAN_FRONTEND=noninteractive
	missing=""
	for package in $(TEST_TOOLS) $(BENCH_TOOLS); do
		[ "$$(dpkg-query --show --showformat='$${db:Status-Status}' "$$package" 2>/dev/null)" = installed ] || missing="$$missing $$package"
	done
	if [ -z "$$missing" ]; then exit 0; fi
	echo "make: installing$$missing"
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends --no-upgrade $$missing >/dev/null

demo: $(STAMP)  ## train a tiny spancat for real and deploy it while it trains (ARGS=--keep keeps its folder)
	@exec $(BIN)/spancat-daemon demo $(ARGS)

# All tests but the benchmarks and the long ones of `faults`: side by side, then those that must have the machine to
# themselves, of which only the files that have any are read. $(1) shows the coverage of both. Exit status 5, nothing
# was selected, as by ARGS='-k idle', counts only if it is so in both.
define run_tests
beside=0 alone=0
$(BIN)/pytest -m "not benchmark and not exhaustive and not alone" -n $(WORKERS) --maxprocesses=8 --dist=worksteal --cov --cov-report= $(ARGS) || beside=$$?
case $$beside in 0|1|5) ;; *) exit $$beside ;; esac
$(BIN)/pytest -o testpaths="$$(grep -rl --include='test_*.py' 'pytest.mark.alone' tests | tr '\n' ' ')" -m "not benchmark and not exhaustive and alone" --cov --cov-append --cov-report= $(ARGS) || alone=$$?
case $$alone in 0|1|5) ;; *) exit $$alone ;; esac
$(1)
case $$beside$$alone in 00|05|50) ;; *1*) exit 1 ;; *) exit 5 ;; esac
endef

test: lint  ## the checks of `lint`, then all tests, with coverage
	@$(call run_tests,$(BIN)/coverage report)

# What the last run told, and what is known of each suite: of its newest run that was whole and green.
FAULTS := .faults.jsonl
TRIED := docs/reliability.jsonl

# All of it, or a part: ARGS=tests/faults/test_disks.py, ARGS='-k disks'. Both calls run, whatever the first one finds;
# each suite that ran whole and green takes the place of what was counted of it before.
faults: $(STAMP)  ## every case of every fault of tests/faults, and the tables of docs/reliability.md (ARGS=FILE: of one suite)
	@$(BIN)/python -m tests.faults.page begin $(FAULTS)
	export SPANCAT_DAEMON_FAULT_REPORT="$(CURDIR)/$(FAULTS)"
	beside=0 alone=0
	$(BIN)/pytest -o testpaths=tests/faults -m "(exhaustive or not exhaustive) and not alone" --timeout=7200 -n $(WORKERS) --maxprocesses=8 --dist=worksteal $(ARGS) || beside=$$?
	case $$beside in 0|1|5) $(BIN)/pytest -o testpaths=tests/faults -m "(exhaustive or not exhaustive) and alone" --timeout=7200 $(ARGS) || alone=$$? ;; esac
	$(BIN)/python -m tests.faults.page end $(FAULTS) $(TRIED) docs/reliability.md
	case $$beside in 0|1|5) ;; *) exit $$beside ;; esac
	case $$alone in 0|1|5) ;; *) exit $$alone ;; esac
	case $$beside$$alone in 00|05|50) ;; *1*) exit 1 ;; *) exit 5 ;; esac

reliability: $(STAMP)  ## the tables of docs/reliability.md again, from what is known of each suite
	@exec $(BIN)/python -m tests.faults.page make $(TRIED) docs/reliability.md

# How long, and which faults in which order: make soak MINUTES=60 SEED=7
MINUTES ?= 10
SEED ?=

soak: $(STAMP)  ## everything at once for so many MINUTES: trainings, readers, users and random faults; then a verdict
	@exec $(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# What the fuzzer found to reach new code, and what crashed, which then belongs into tests/faults/fuzzing/corpus.
FUZZED := .fuzzed
MINUTES ?= 10

fuzz: $(STAMP)  ## atheris on everything that reads foreign bytes, one target after the other (MINUTES=10 in all)
	@targets="$$($(BIN)/python -c 'from tests.faults.fuzzing.targets import TARGETS; print(*TARGETS)')"
	set -- $$targets
	mkdir -p $(FUZZED)
	failed=
	for target in "$$@"; do
		echo "make: $$target"
		$(BIN)/python -m tests.faults.fuzzing "$$target" $(FUZZED) -max_total_time="$$(( ($(MINUTES) * 60 + $$# - 1) / $$# ))" $(ARGS) || failed="$$failed $$target"
	done
	if [ -n "$$failed" ]; then echo "make: found something:$$failed; see $(FUZZED)" >&2; exit 1; fi

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(STAMP)  ## the tests, with coverage as pages in htmlcov/
	@$(call run_tests,$(BIN)/coverage html)

# What was measured, the page that is made of it, and the tables of README.md. LONGER=4 makes four times as many rounds.
PERFORMANCE := docs/performance.md
LONGER ?= 1

bench: $(STAMP)  ## the measurements of tests/benchmarks, and docs/performance.md (twenty minutes, as root)
	@export SPANCAT_DAEMON_BENCH="$(CURDIR)/$(PERFORMANCE:.md=)" SPANCAT_DAEMON_BENCH_LONGER="$(LONGER)"
	mkdir -p "$$SPANCAT_DAEMON_BENCH"
	failed=0
	$(BIN)/pytest -m benchmark -p no:cacheprovider --durations=0 -s tests/benchmarks $(ARGS) || failed=$$?
	$(BIN)/python -m tests.benchmarks.report $(PERFORMANCE) README.md
	exit $$failed

lock:  ## resolve pyproject.toml anew into requirements.lock (Python 3.11 to 3.13, Linux)
	@resolver="$$(mktemp -d)"
	trap 'rm -rf "$$resolver"' EXIT
	$(PYTHON) -m venv "$$resolver"
	"$$resolver/bin/pip" install --quiet 'uv>=0.9'
	"$$resolver/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--output-file requirements.lock pyproject.toml

clean:  ## remove the environment and everything that tools left behind
	rm -rf $(VENV) $(FUZZED) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* $(FAULTS) .soak coverage.xml htmlcov dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@if [ ! -x $(BIN)/python ]; then
		python=""
		for candidate in $(CANDIDATES); do
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
				python="$$candidate"
				break
			fi
		done
		if [ -z "$$python" ]; then
			echo "make: no Python 3.11 or newer found (looked for: $(CANDIDATES)); install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2
			exit 1
		fi
		# Debian ships Python without the parts that make environments
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
			if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
				echo "make: $$python can't make environments: installing Debian's python3-venv"
				export DEBIAN_FRONTEND=noninteractive
				apt-get update -qq
				apt-get install -y -qq --no-install-recommends python3-venv
			fi
			if ! "$$python" -c 'import ensurepip, venv'; then
				echo "make: $$python can't make environments; as root: apt-get install python3-venv" >&2
				exit 1
			fi
		fi
		echo "make: setting up $(VENV) with $$("$$python" --version)"
		"$$python" -m venv $(VENV)
	fi
	# The lock holds all there is to install. Asked to resolve, pip (seen: 23.2.1) takes `coverage[toml]` of pytest-cov for
	# something that the line `coverage==` does not pin, and fails as soon as there is a newer coverage.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip check --quiet --disable-pip-version-check
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
