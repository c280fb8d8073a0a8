export PATH := $(CURDIR)/.venv/bin:$(PATH)
STARTED := $(shell date +%s)
.PHONY: help up down test chaos lint unit train tools tools-legacy dev-tools
.DEFAULT_GOAL := help

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

up: tools ## Bring up a server in a container on this machine and serve models/ from it
	@SLIPWAY_STARTED=$(STARTED) ansible-playbook site.yml

down: tools ## Remove that server again
	@ansible-playbook playbooks/down.yml

test: dev-tools ## Run every check
	@scripts/check all

chaos: dev-tools ## Change and break a server while clients ask, and count what they notice
	@CHAOS=full pytest -rP tests/test_chaos.py

lint: dev-tools ## Lint roles, playbooks, Python, shell and Dockerfiles
	@scripts/check lint

unit: dev-tools ## Run the app's tests in its toolchain container
	@scripts/check unit

train: tools ## Train every model in models/ anew, in the toolchain container
	@ansible-playbook playbooks/train.yml

tools: ## Install the tools into .venv
	@scripts/venv .venv requirements.txt

tools-legacy: ## Install those for servers with CentOS 7 or EL 8 instead
	@scripts/venv .venv requirements-legacy.txt

dev-tools:
	@scripts/venv .venv requirements.txt requirements-dev.txt app/requirements/runtime.txt
