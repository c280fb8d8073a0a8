export PATH := $(CURDIR)/.venv/bin:$(PATH)
.PHONY: help up check down test quick chaos machine bench lint unit train tools tools-legacy dev-tools
.DEFAULT_GOAL := help

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s%s\n", $$1, $$2 }' Makefile

# By path: make 3.81, macOS's, ignores the exported PATH when it runs a simple command.
up: tools ## Bring up a server in a container on this machine and serve models/ from it
	@.venv/bin/ansible-playbook site.yml

check: tools ## Check every model and its card, or one of them: make check MODEL=name
	@.venv/bin/ansible-playbook playbooks/check.yml $(if $(MODEL),-e '{"model": "$(MODEL)"}')

down: tools ## Remove that server again
	@.venv/bin/ansible-playbook playbooks/down.yml

test: dev-tools ## Run every check
	@scripts/check all

quick: dev-tools ## Run the checks that need no server
	@scripts/check lint unit decisions templates

chaos: dev-tools ## Change and break a server while clients ask, and count what they notice
	@.venv/bin/ansible-playbook tests/images.yml --tags base
	@CHAOS=full .venv/bin/pytest -rP tests/test_chaos.py

machine: dev-tools ## Deploy to a virtual machine with a kernel of its own, reboot it, turn SELinux on
	@.venv/bin/pytest -x -v -s tests/test_machine.py

bench: tools ## Measure Slipway beside other model servers: make bench ONLY=xor,cnn-jpeg PEERS=litserve,nginx SECONDS=3 ROUNDS=3
	@.venv/bin/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY)) $(if $(PEERS),--peers $(PEERS)) \
	    $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROUNDS),--rounds $(ROUNDS))

lint: dev-tools ## Lint roles, playbooks, Python, shell and Dockerfiles
	@scripts/check lint

unit: dev-tools ## Run the app's tests in its toolchain container
	@scripts/check unit

train: tools ## Train every model in models/ again, in the toolchain container
	@.venv/bin/ansible-playbook playbooks/train.yml

tools: ## Install the tools into .venv
	@scripts/venv .venv requirements.txt

tools-legacy: ## Install the tools for servers with CentOS 7 or EL 8 instead
	@scripts/venv .venv requirements-legacy.txt

dev-tools:
	@scripts/venv .venv requirements.txt requirements-dev.txt app/requirements/runtime.txt
