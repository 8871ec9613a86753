# VMAN's commands. `make` lists them; the work is in cargo and in the scripts under contrib/.

SHELL := /bin/bash
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin
PREFIX ?= /usr/local
TARGET = $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run run-clean test test-long fuzz bench bench-scale bench-peers build release fmt lint guest coverage deny deb install clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build, start a demo daemon and boot a guest in it; Ctrl-C ends the daemon
	@contrib/setup.sh run
	@contrib/run/demo.sh

run-clean: ## remove the demo: its VMs and all it stored
	@contrib/run/demo.sh clean

test: ## run everything: fmt, clippy, unit, property, contract and real-QEMU tests
	@contrib/setup.sh test
	@contrib/test.sh

test-long: ## the same with the long tests (those marked ignored)
	@contrib/setup.sh test
	@contrib/test.sh --run-ignored all

fuzz: ## fuzz what reads strangers' bytes, FUZZ_SECONDS=60 a target
	@contrib/fuzz.sh $(FUZZ_TARGETS)

bench: ## measure, beside the bare floor
	@contrib/setup.sh run
	@contrib/guest/build.sh
	cargo build --release
	cargo bench --bench vman

bench-scale: ## measure many VMs and many clients, and write docs/performance.md
	@contrib/setup.sh run
	cargo build --release
	VMAN_BENCH_WRITE=1 cargo bench --bench vman -- scale

bench-peers: ## measure beside libvirt, which is installed for that
	@contrib/setup.sh run
	cargo bench --bench peers

build: ## build for development
	cargo build --workspace

release: ## build for use
	cargo build --release --locked

fmt: ## format the code
	cargo fmt --all

lint: ## check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

guest: ## build the guest that tests and demo boot (contrib/guest/out), its disk image too
	@contrib/guest/build.sh
	@contrib/guest/build.sh --disk

coverage: ## measure which lines the tests run (some minutes)
	@contrib/setup.sh test
	@contrib/coverage.sh

deny: ## check licences, banned crates and sources of the dependencies
	@cargo deny --version >/dev/null 2>&1 || { \
	  echo "installing cargo-deny (some minutes): cargo install --locked cargo-deny"; \
	  cargo install --locked cargo-deny; }
	cargo deny check licenses bans sources

deb: ## build the Debian package
	@contrib/debian/build.sh

install: ## install the release build below PREFIX (/usr/local); run `make release` first
	@test -x $(TARGET)/release/vman || { echo "nothing to install yet: run 'make release' first" >&2; exit 1; }
	install -D -m 755 $(TARGET)/release/vman $(DESTDIR)$(PREFIX)/bin/vman
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/vman CHANGELOG.md docs/*.md
	install -D -m 644 contrib/vman.catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/vman.catalog
	for unit in vman.service vman.socket drain/vman-drain.service; do \
	  install -d $(DESTDIR)$(PREFIX)/lib/systemd/system && \
	  sed 's|/usr/bin/vman|$(PREFIX)/bin/vman|g' contrib/systemd/$$unit \
	    > $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/} || exit 1; done
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	$(TARGET)/release/vman man $(DESTDIR)$(PREFIX)/share/man/man1
	for shell in bash:bash-completion/completions/vman zsh:zsh/site-functions/_vman fish:fish/vendor_completions.d/vman.fish; do \
	  install -d $(DESTDIR)$(PREFIX)/share/$$(dirname $${shell#*:}) && \
	  $(TARGET)/release/vman completion $${shell%%:*} > $(DESTDIR)$(PREFIX)/share/$${shell#*:} || exit 1; done
	test -e $(DESTDIR)/etc/vman/vman.toml || install -D -m 644 contrib/vman.toml $(DESTDIR)/etc/vman/vman.toml

clean: ## remove what was built, the guest too
	cargo clean
	rm -rf contrib/guest/out
