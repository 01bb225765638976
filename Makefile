# Every target does the set-up it needs first; see README.md.
.PHONY: demo test test-vm lint bench clean setup

demo:
	@scripts/setup
	@scripts/demo

test: lint
	@NETPATH_WHOLE_SUITE=1 .venv/bin/python -m pytest --durations=15

# The part of it that other kernels run, each in a guest.
test-vm:
	@scripts/setup --dev
	@.venv/bin/python -m pytest tests/vm

lint:
	@scripts/setup --dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench:
	@scripts/setup --dev
	@.venv/bin/python -m tests.bench

setup:
	@scripts/setup --dev

clean:
	@rm -rf .venv build dist netpath.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
