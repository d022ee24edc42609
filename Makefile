# One-line targets around npm scripts. `make check` is what CI runs.
.DEFAULT_GOAL := help
.PHONY: help install-tools native build run test check bench conformance simulate fuzz generate format tag-release clean

# Node 24 comes as an npm package, whatever the machine has; install scripts of other packages are not needed.
node_modules/.bin/node: package-lock.json
	npm ci --ignore-scripts
	npm rebuild node
	@touch $@

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

install-tools: node_modules/.bin/node ## Install packages; say which system tools are missing (as root on Debian: install them)
	@sh tools/install-tools.sh
	@sh tools/install-s3-servers.sh

native: node_modules/.bin/node ## Compile the native library (about a second)
	@npm run --silent native

build: native ## Types checked, code bundled: dist/
	@npm run --silent build

# Not through npm, which would send the server every Ctrl-C twice.
run: native ## Start the server from the sources
	@UV_THREADPOOL_SIZE=$${UV_THREADPOOL_SIZE:-16} exec node_modules/.bin/node --env-file-if-exists=.env src/main.ts

test: native ## All tests
	@npm run --silent test

check: native ## Lint, types, formats, generated files, tests, fuzzing, conformance, short benchmarks
	@npm run --silent check

bench: build ## All benchmarks, into docs/BENCHMARKS.md
	@npm run --silent bench

conformance: native ## Connect's conformance suite (needs Go)
	@npm run --silent conformance

simulate: native ## SEED=n: repeats one schedule of the simulation, step by step
	@npm run --silent simulate -- --seed $(SEED) --verbose

fuzz: native ## The request fuzzer of the native library, under sanitizers
	@npm run --silent fuzz

generate: node_modules/.bin/node ## gen/ and the generated pages of docs/
	@npm run --silent generate

format: node_modules/.bin/node ## Format all sources
	@npm run --silent format

tag-release: node_modules/.bin/node ## TAG=v1.0.0: check and tag; the release workflow does the rest
	@npm run --silent tag-release -- "$(TAG)"

clean: ## Remove what was built
	rm -rf build dist
	$(MAKE) --silent -C native clean
