# evenflow: `make help` lists the targets.
#
# One build directory per configuration; V=1 shows the commands.

CC       ?= gcc
BUILD    ?= build
V        ?= 0
PREFIX   ?= /usr/local
SANITIZE ?=

Q := $(if $(filter 1,$(V)),,@)

CFLAGS   += -std=gnu17 -O2 -g -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
            -ffp-contract=off -fno-math-errno -fno-common
CPPFLAGS += -I. -D_GNU_SOURCE
LDFLAGS  += -Wl,--as-needed -Wl,-z,relro,-z,now
ifneq ($(SANITIZE),)
CFLAGS   += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
LDFLAGS  += -fsanitize=$(SANITIZE)
endif

.DEFAULT_GOAL := all

# ---- sources: one library per folder, one program per main_*.c ----
sources = $(filter-out $(1)/main_%.c,$(wildcard $(1)/*.c))
objects = $(patsubst %.c,$(BUILD)/%.o,$(1))

IPC_OBJ     := $(call objects,$(call sources,ipc))
KERNELS_OBJ := $(call objects,$(call sources,kernels))
ENGINE_OBJ  := $(call objects,$(call sources,engine))
STAGES_OBJ  := $(call objects,$(call sources,stages))
TOOLS_OBJ   := $(call objects,$(call sources,tools))

$(BUILD)/kernels/cpu_avx2.o: CFLAGS += -O3 -mavx2 -mfma -mf16c
$(BUILD)/kernels/cpu_avx512.o: CFLAGS += -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512
$(BUILD)/kernels/cpu_ref.o: CFLAGS += -O2

LIBS_ENGINE := -luring -ljansson -lhttp_parser
PROGRAMS := $(BUILD)/bin/evenflow $(BUILD)/bin/evenflow-supervisor $(BUILD)/bin/evenflow-front \
            $(BUILD)/bin/evenflow-sched $(BUILD)/bin/evenflow-stage

.PHONY: all
all: $(PROGRAMS)

$(BUILD)/bin/evenflow: $(BUILD)/tools/main_evenflow.o $(TOOLS_OBJ) $(ENGINE_OBJ) $(STAGES_OBJ) $(KERNELS_OBJ) $(IPC_OBJ)
$(BUILD)/bin/evenflow: LIBS = $(LIBS_ENGINE) -lm
$(BUILD)/bin/evenflow-supervisor: $(BUILD)/engine/main_supervisor.o $(ENGINE_OBJ) $(IPC_OBJ)
$(BUILD)/bin/evenflow-supervisor: LIBS = $(LIBS_ENGINE) -lm
$(BUILD)/bin/evenflow-front: $(BUILD)/engine/main_front.o $(ENGINE_OBJ) $(IPC_OBJ)
$(BUILD)/bin/evenflow-front: LIBS = $(LIBS_ENGINE) -lm
$(BUILD)/bin/evenflow-sched: $(BUILD)/engine/main_sched.o $(ENGINE_OBJ) $(IPC_OBJ)
$(BUILD)/bin/evenflow-sched: LIBS = $(LIBS_ENGINE) -lm
$(BUILD)/bin/evenflow-stage: $(BUILD)/stages/main_stage.o $(STAGES_OBJ) $(KERNELS_OBJ) $(IPC_OBJ)
$(BUILD)/bin/evenflow-stage: LIBS = -lm

$(BUILD)/bin/%:
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
