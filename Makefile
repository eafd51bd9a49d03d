# Hallmark. "make help" lists the targets.
#
# On a fresh Debian machine with Go, two commands do everything: "make demo" and
# "make test". Both run "make setup" first, which installs what is missing.

SHELL := /bin/bash -euo pipefail
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Without this, Packer asks a server whether it is up to date.
export CHECKPOINT_DISABLE := 1

VERSION ?= 0.1.0-dev
BUILDINFO := github.com/hallmark-ssh/hallmark/internal/buildinfo
LDFLAGS := -s -w -X $(BUILDINFO).version=$(VERSION)
GO_BUILD := go build -ldflags "$(LDFLAGS)"
# Programs, tools and tests share these, so that Go compiles no package twice. "make lint" vets
# the code; if tests did it again, Go would look at every dependency for it, which takes minutes.
# The programs are stripped, so nothing needs what a debugger reads; without it, compiling takes
# a fifteenth less.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -vet=off -gcflags=all=-dwarf=false
# Each long command is a step: CI prints how long it took.
STEP := $(CURDIR)/e2e/step.sh
# Only "make soak" runs what -short leaves out.
SHORT := -short
# What the programs are built from, including embedded files.
GO_SOURCES := go.mod go.sum $(shell find cloudinit internal lambda packer-plugin templates -type f \
	! -name '*_test.go' ! -path '*/testdata/*' ! -name 'hallmark-linux-*')
# golangci-lint caches findings by content, with the paths of the tree where it first
# saw them. A cache shared with another checkout would break the exclusions by path.
export GOLANGCI_LINT_CACHE := $(CURDIR)/bin/golangci-lint-cache
# .ci/run and GitHub set CI.
IN_CI := $(filter true,$(CI))
# Whole-path tests need root; a developer's own account uses sudo for them.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install every Debian package and tool that the rest needs
	@$(STEP) "make setup" e2e/setup.sh

.PHONY: build
build: bin/hallmark bin/bootstrap bin/hallmark-signer bin/packer-plugin-hallmark ## build the programs into bin/

# The programs that the Packer plugin carries, one for each architecture in EC2. The demo and the
# tests need only this machine's.
ARCHITECTURES ?= amd64 arm64
PROGRAMS := $(ARCHITECTURES:%=packer-plugin/programs/hallmark-linux-%)

bin/hallmark: $(GO_SOURCES)
	$(STEP) "build $@" $(GO_BUILD) -o $@ ./cloudinit

bin/bootstrap: $(GO_SOURCES)
	$(STEP) "build $@" $(GO_BUILD) -tags lambda.norpc -o $@ ./lambda

# One page for each command, for packages. The date is that of the last commit.
.PHONY: man
man: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
man: ## write the manual pages into bin/man/
	go run -ldflags "$(LDFLAGS)" ./docs/man bin/man

# A function that does nothing, built like bootstrap, to compare cold starts with.
bin/bench-empty: go.mod go.sum e2e/cmd/bench/empty/main.go
	$(STEP) "build $@" $(GO_BUILD) -tags lambda.norpc -o $@ ./e2e/cmd/bench/empty

bin/hallmark-signer: $(GO_SOURCES)
	$(STEP) "build $@" $(GO_BUILD) -o $@ ./lambda/operator

packer-plugin/programs/hallmark-linux-%: $(GO_SOURCES)
	$(STEP) "build $@" env GOOS=linux GOARCH=$* $(GO_BUILD) -o $@ ./cloudinit

bin/packer-plugin-hallmark: $(PROGRAMS) $(GO_SOURCES)
	$(STEP) "build $@" $(GO_BUILD) -o $@ ./packer-plugin

# The real Packer, for the demo and the whole-path tests.
bin/packer: e2e/tools/packer/go.mod e2e/tools/packer/go.sum
	cd e2e/tools/packer && $(STEP) "build $@" go build -o ../../../$@ github.com/hashicorp/packer

bin/golangci-lint: e2e/tools/golangci-lint/go.mod e2e/tools/golangci-lint/go.sum
	cd e2e/tools/golangci-lint && $(STEP) "build $@" go build -o ../../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# The packager of deb and rpm packages. A tool only: no program contains it.
bin/nfpm: e2e/tools/nfpm/go.mod e2e/tools/nfpm/go.sum
	cd e2e/tools/nfpm && $(STEP) "build $@" go build -o ../../../$@ github.com/goreleaser/nfpm/v2/cmd/nfpm

# deb and rpm packages for machines that are not baked (docs/existing-machines.md).
.PHONY: packages
packages: bin/nfpm bin/hallmark $(PROGRAMS) man ## build deb and rpm packages into bin/packages/
	$(STEP) "build packages" templates/packages/build.sh "$(VERSION)" bin/packages $(ARCHITECTURES)

# AWS's emulator of Lambda's Runtime API. The whole-path tests run the functions in it.
bin/aws-lambda-rie: e2e/tools/rie/go.mod e2e/tools/rie/go.sum
	cd e2e/tools/rie && $(STEP) "build $@" go build -o ../../../$@ github.com/aws/aws-lambda-runtime-interface-emulator/cmd/aws-lambda-rie

# A simulator of IAM, for tests only: it is AGPL, and part of no program.
bin/iam-simulate/simulate.mjs: $(addprefix e2e/tools/iam-simulate/,package.json package-lock.json simulate.mjs)
	rm -rf bin/iam-simulate
	mkdir -p bin/iam-simulate
	cp e2e/tools/iam-simulate/package*.json bin/iam-simulate/
	cd bin/iam-simulate && $(STEP) "install iam-simulate" npm ci --silent --no-audit --no-fund --ignore-scripts
	cp e2e/tools/iam-simulate/simulate.mjs $@

# Teleport, for tests only. "make TARGET TELEPORT=DIR" uses the programs of any version
# in a folder. Without it, make builds 13.3.8: about a quarter of an hour on two processors, once.
TELEPORT ?=
TELEPORT_DIR := $(abspath $(or $(TELEPORT),bin/teleport))
BUILT_PROGRAMS := bin/teleport/cluster bin/teleport/tctl bin/teleport/tsh
$(BUILT_PROGRAMS) &: e2e/teleport/go.mod e2e/teleport/go.sum $(wildcard e2e/teleport/*/*.go)
	cd e2e/teleport && $(STEP) "build bin/teleport" env CGO_ENABLED=1 go build -ldflags '-s -w -checklinkname=0' -o ../../bin/teleport/ ./cluster \
		github.com/gravitational/teleport/tool/tctl github.com/gravitational/teleport/tool/tsh

# Only the comparison with "teleport join openssh" needs it.
bin/teleport/teleport: e2e/teleport/go.mod e2e/teleport/go.sum
	cd e2e/teleport && $(STEP) "build $@" env CGO_ENABLED=1 go build -ldflags '-s -w -checklinkname=0' -o ../../$@ github.com/gravitational/teleport/tool/teleport

.PHONY: bin/teleport
bin/teleport: $(BUILT_PROGRAMS)

# The targets below need the programs, either built or all in the given folder.
.PHONY: teleport-programs
teleport-programs: $(if $(TELEPORT),,$(BUILT_PROGRAMS) bin/teleport/teleport)
	@for program in cluster tctl tsh teleport; do \
		[ -f "$(TELEPORT_DIR)/$$program" ] && [ -x "$(TELEPORT_DIR)/$$program" ] || \
			{ echo "$(TELEPORT_DIR) has no program $$program: TELEPORT=DIR takes a folder with cluster, tctl, tsh and teleport (e2e/teleport/README.md)" >&2; exit 1; }; \
	done

# The demo has an embedded cluster, unless CLUSTER=teleport or TELEPORT=DIR.
REAL_CLUSTER := $(TELEPORT)$(filter teleport,$(CLUSTER))

.PHONY: demo
demo: export ARCHITECTURES = $(shell go env GOARCH)
demo: $(if $(REAL_CLUSTER),teleport-programs) ## bake an image, boot three machines, enroll them, log in
	TOOLS=packer e2e/beside.sh modules "setup bin/rootfs"
	RELEASES=bookworm e2e/beside.sh rootfs "build bin/packer bin/demo"
	$(AS_ROOT) bin/demo $(if $(REAL_CLUSTER),-teleport "$(TELEPORT_DIR)")

# The root file systems of the demo's and the tests' machines. Without this, whatever needs one
# first builds it.
RELEASES ?= bookworm bullseye trixie
.PHONY: rootfs
rootfs: bin/rootfs
	$(STEP) "root file systems" $(AS_ROOT) bin/rootfs $(RELEASES)

# What the programs, the tools and the tests are made of. Without this, each build would first
# wait for its own.
TOOLS ?= packer nfpm rie $(if $(IN_CI),golangci-lint)
.PHONY: modules
modules:
	$(STEP) "Go modules" e2e/modules.sh $(TOOLS)

# After bin/hallmark, most of it is compiled.
bin/rootfs: bin/hallmark $(wildcard e2e/machine/*.go e2e/cmd/rootfs/*.go)
	$(STEP) "build $@" go build -o $@ ./e2e/cmd/rootfs

.PHONY: bin/demo bin/bench
bin/demo bin/bench: bin/%:
	$(STEP) "build $@" go build -o $@ ./e2e/cmd/$*

# What mostly waits runs beside what mostly computes. In CI, that is also building Teleport, and the
# tests that need it come after.
.PHONY: test
test: export HALLMARK_TEST_STRICT := 1
test: export ARCHITECTURES = $(if $(IN_CI),amd64 arm64,$(shell go env GOARCH))
test: export RELEASES := $(if $(IN_CI),$(RELEASES),bookworm)
test: ## run the tests, with real machines; CI=true adds Teleport, SELinux, more releases of Debian and "make lint"
	e2e/beside.sh modules "setup bin/rootfs"
	e2e/beside.sh rootfs "build bin/packer bin/nfpm bin/aws-lambda-rie bin/iam-simulate/simulate.mjs"
ifdef IN_CI
	e2e/beside.sh "test-faults test-releases" teleport-programs
	e2e/beside.sh "whole-path test-selinux test-teleport" "unit check-templates emulated lint"
else
	e2e/beside.sh "test-faults whole-path test-releases" "unit check-templates emulated"
endif

# The slowest tests: every order of the signer's calls, every step at which a run can be killed,
# other versions of OpenSSH.
.PHONY: soak
soak: export HALLMARK_TEST_STRICT := 1
soak: SHORT :=
soak: unit emulated test-sshd ## run the tests that "make test" shortens or leaves out, all but "make race"

# Tests one more package at a time than there are processors, because the agent's tests mostly wait
# for sshd.
TEST_UNITS := go test -p "$$(($$(getconf _NPROCESSORS_ONLN) + 1))" -timeout 30m

.PHONY: unit
unit: ## run the tests that need no root, on any Linux or macOS
	$(STEP) "unit tests" $(TEST_UNITS) $(SHORT) ./...

# Compiling for the race detector is slow, and needs cgo. TestKilled is left out: the runs that it
# kills are separate processes, which the detector does not watch.
.PHONY: race
race: export HALLMARK_TEST_STRICT := 1
race: setup ## run the unit tests with the race detector
	$(STEP) "race detector" env CGO_ENABLED=1 GOFLAGS='-vet=off -gcflags=all=-dwarf=false' $(TEST_UNITS) -short -skip TestKilled -race ./...

# How many states of a pair "make explore" looks at. Without reduction, some pairs have 10^13
# orders: no machine can hold their states.
EXPLORE_STATES ?= 30000

.PHONY: explore
explore: ## run every pair of operations in every order, even of calls that commute, up to EXPLORE_STATES
	go test -count 1 -timeout 0 -v ./internal/signer/explore -run TestInterleavings -args -explore.all -explore.stale -explore.states $(EXPLORE_STATES)
	go test -count 1 -timeout 0 -v ./internal/signer/explore -run TestInterleavings -args -explore.all -explore.commuting -explore.states $(EXPLORE_STATES)

# How long "make fuzz" runs each target.
FUZZTIME ?= 60s

.PHONY: fuzz
fuzz: ## fuzz every parser of untrusted input, FUZZTIME for each target
	e2e/fuzz.sh $(FUZZTIME)

.PHONY: check-templates
check-templates: setup bin/packer
	$(STEP) "packer fmt" bin/packer fmt -check -diff templates/packer
	$(STEP) "packer validate" bin/packer validate -syntax-only templates/packer

.PHONY: e2e
e2e: emulated whole-path

# The functions, and what they call, against emulators of AWS's services. Two packages build the
# functions: one after the other, the second has the first one's objects.
.PHONY: emulated
emulated: export HALLMARK_TEST_STRICT := 1
emulated: setup build bin/aws-lambda-rie bin/iam-simulate/simulate.mjs
	$(STEP) "permissions of the template" go test -timeout 20m -tags e2e ./e2e/iam
	$(STEP) "stacks on moto" go test -timeout 20m -tags e2e ./e2e/stack
	$(STEP) "emulated AWS services" go test $(SHORT) -timeout 20m -tags e2e ./e2e/fake/moto ./e2e/fake/sts ./e2e/fake/dynamodb ./e2e/policystore
	$(STEP) "functions in AWS's emulator" go test -timeout 20m -tags e2e ./e2e/fake/lambdahost ./e2e/runtime
	$(STEP) "functions on moto and SAM's template" go test $(SHORT) -p 1 -timeout 20m -tags e2e -run 'Moto|SAM' ./lambda ./lambda/deploy ./internal/signer/operator ./internal/signer/organization ./internal/signer/inventory
	$(if $(SHORT),,$(STEP) "explorer on DynamoDB Local" go test -timeout 20m -tags e2e -run TestDynamoDB ./internal/signer/explore)

.PHONY: whole-path
whole-path: export HALLMARK_TEST_STRICT := 1
whole-path: setup build bin/packer bin/aws-lambda-rie
	$(STEP) "messages of real Packer" go test -timeout 20m -tags e2e -run RealPacker ./packer-plugin
	$(STEP) "build e2e.test" go test -c -tags e2e -o bin/e2e.test ./e2e
	cd e2e && $(STEP) "whole path" $(AS_ROOT) ../bin/e2e.test -test.v -test.timeout 40m

# Each builds its root file systems first, once: about a minute for a release. With RELEASES=bookworm,
# test-releases runs on Debian 12 only.
.PHONY: test-releases
test-releases: setup build packages bin/packer bin/aws-lambda-rie ## run the whole path on Debian 11, 12 and 13, behind ssh.socket, and from packages
	$(STEP) "build later packages" templates/packages/build.sh 99.0.0 bin/packages/later "$$(go env GOARCH)"
	$(STEP) "build releases.test" go test -c -tags e2e -o bin/releases.test ./e2e/releases
	cd e2e/releases && $(STEP) "make test-releases" $(AS_ROOT) ../../bin/releases.test -test.v -test.timeout 40m $(if $(filter bullseye trixie,$(RELEASES)),,-test.short)

.PHONY: test-faults
test-faults: setup build bin/packer ## break a machine in every way that docs/reliability.md lists
	$(STEP) "build faults.test" go test -c -tags e2e -o bin/faults.test ./e2e/faults
	cd e2e/faults && $(STEP) "make test-faults" $(AS_ROOT) ../../bin/faults.test -test.v -test.timeout 40m

# Builds its root file system first, once: one to four minutes. QEMU then emulates two boots.
.PHONY: test-selinux
test-selinux: setup build bin/packer ## run the whole path on a machine that enforces SELinux
	$(STEP) "build selinux.test" go test -c -tags e2e -o bin/selinux.test ./e2e/selinux
	cd e2e/selinux && $(STEP) "make test-selinux" $(AS_ROOT) ../../bin/selinux.test -test.v -test.timeout 40m

.PHONY: test-sshd
test-sshd: setup bin/rootfs ## run the tests that use sshd with OpenSSH 8.4 and 10.0
	$(STEP) "make test-sshd" $(AS_ROOT) e2e/sshd.sh

.PHONY: test-teleport
test-teleport: teleport-programs setup build bin/packer bin/demo bin/bench ## run the tests that need a real Teleport cluster; TELEPORT=DIR uses another version's programs
	$(STEP) "real Teleport" go test -count 1 -timeout 40m -tags teleport ./e2e/teleportd -args -programs="$(TELEPORT_DIR)"
	$(STEP) "build people.test" go test -c -tags teleport -o bin/people.test ./e2e/people
	cd e2e/people && $(STEP) "people" $(AS_ROOT) ../../bin/people.test -test.v -test.timeout 40m -programs="$(TELEPORT_DIR)"
	$(STEP) "demo on Teleport" $(AS_ROOT) bin/demo -teleport "$(TELEPORT_DIR)"
	$(STEP) "comparison with teleport join" $(AS_ROOT) bin/bench -join -teleport "$(TELEPORT_DIR)"

# Without CI=true, this installs nothing and skips missing tools.
.PHONY: lint
lint: $(if $(IN_CI),setup) bin/golangci-lint ## check the code, the scripts and the templates
	e2e/lint.sh

.PHONY: bench
bench: teleport-programs setup build bin/bench-empty bin/bench bin/packer ## print sizes, times and memory
	go test -run '^$$' -bench . -cpu 1 ./internal/identity ./internal/signer/policy ./internal/signer/enroll
	go test -run '^$$' -bench Step ./internal/machine/agent
	go test -tags e2e -run '^$$' -bench Report ./e2e/fake/dynamodb
	$(AS_ROOT) bin/bench -teleport "$(TELEPORT_DIR)"

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist $(PROGRAMS)

.PHONY: deploy
deploy: ## build the signer and deploy its stack (docs/quickstart.md); STACK, AWS_REGION, ALARM_EMAIL, PARAMETERS
	lambda/deploy/deploy.sh deploy

.PHONY: package
package: ## build and upload the signer, and print the address of its template, for Terraform
	lambda/deploy/deploy.sh package

# SAM and deploy.sh call these with ARTIFACTS_DIR set (BuildMethod: makefile in
# template.yaml), in a copy of this folder. The two functions are one program with different
# settings; for the second, Go finds all but the linking in its cache.
build-EnrollFunction: FUNCTION := enroll
build-FleetFunction: FUNCTION := fleet
# The functions' processor (Architectures in template.yaml).
FUNCTION_ARCH ?= arm64
.PHONY: build-EnrollFunction build-FleetFunction
build-EnrollFunction build-FleetFunction:
	@test -f deployment/deployment.yaml || { echo "deployment/deployment.yaml is missing: see docs/deploy.md" >&2; exit 1; }
	go run ./lambda/operator deployment pack deployment/deployment.yaml --function $(FUNCTION) --into "$(ARTIFACTS_DIR)"
	GOOS=linux GOARCH=$(FUNCTION_ARCH) $(GO_BUILD) -tags lambda.norpc -o "$(ARTIFACTS_DIR)/bootstrap" ./lambda
