# make demo    private Postgres and ClickHouse servers, sample data, a live writer, and tailwater between them;
#              make demo KAFKA=1: a Kafka broker too
# make test    every test: fast ones, then those against real servers, which they start themselves
# make bench   tailwater beside native logical replication, in the same run
# make lint    formatting and clippy, warnings are errors
# make deps    only install what the others need (Debian packages, further Postgres majors)

CARGO ?= cargo
.DEFAULT_GOAL := help
.PHONY: help demo test bench lint deps deps-demo deps-bench

help:
	@sed -n 's/^# \(make .*\|   .*\)/\1/p' Makefile

deps:
	@tests/install.sh test

deps-demo:
	@tests/install.sh demo

deps-bench:
	@KAFKA=1 tests/install.sh demo

demo: deps-demo
	@echo "demo: building (some minutes when cold), then running; DEMO_SECONDS=20 ends it by itself"
	@exec $(CARGO) run --locked -- demo $(if $(KAFKA),--kafka)

test: deps
	@echo "test: building and running tests/fast (no services) and tests/live (private Postgres clusters)"
	@# A dot a test, so that what failed, and what it said, is seen at once.
	@RUST_LIB_BACKTRACE=0 $(CARGO) test --locked -- --quiet

bench: deps-bench
	@$(CARGO) bench --locked --bench drain

lint:
	@$(CARGO) fmt --check
	@$(CARGO) clippy --locked --all-targets -- -D warnings
