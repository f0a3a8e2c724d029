/* main_bench_limits.c - what this processor can do, and how near to it the kernels come: make bench-limits.
 *
 * Limits: products of bytes with the best instructions that it has, fused multiply-adds of floats, reading through the caches
 * and from memory, with one core and with two. Beside them the best path's kernels on one core, and a whole model that
 * decodes, on one core and on two, as shares of these limits. Everything is measured in turn, again and again, since a machine
 * is not as fast in one second as in the next; what is printed are medians, of time on a processor (of two: by the clock). How
 * little one second says of the next, the last lines say: by how much the same multiply-adds differ from those right before.
 */
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "stages/forward.h"
#include "stages/gguf.h"
#include "tools/measure.h"
#include "tools/samples.h"

#define ROUNDS    15u
#define TIME_NS   8000000u /* of one measurement */
#define CORES_MAX 2u

/* ---- what instructions can do ---- */

#define CHAINS 12u   /* sums under way at once: more than latency times units of any processor */
#define TURNS  4096u /* between two looks at the clock */

enum dot { DOT_AVX512, DOT_AVXVNNI, DOT_AVX2, DOT_NIBBLES, DOT_NONE };

static const struct {
    const char *name;
    double operations; /* of one chain's turn: a multiply-add is two */
} dots[] = {
    [DOT_AVX512] = {"int8 (vpdpbusd, 512 bits)", 128},
    [DOT_AVXVNNI] = {"int8 (vpdpbusd, 256 bits)", 64},
    [DOT_AVX2] = {"int8 (vpmaddubsw, vpmaddwd, vpaddd)", 64},
    [DOT_NIBBLES] = {"nibbles by int8 (vpmaddubsw, vpaddw)", 64},
};

static enum dot best_dot(void)
{
    return __builtin_cpu_supports("avx512vnni") ? DOT_AVX512
           : __builtin_cpu_supports("avxvnni")  ? DOT_AVXVNNI
           : __builtin_cpu_supports("avx2")     ? DOT_AVX2
                                                : DOT_NONE;
}

/* One instruction, or a few that make a product, for every chain; TURNS times. */
#define DEFINE_TURNS(NAME, TARGET, TYPE, CONSTRAINT, INSTRUCTIONS)                                                     \
    __attribute__((target(TARGET))) static void NAME(void)                                                             \
    {                                                                                                                  \
        TYPE acc[CHAINS] = {0}, x = {0}, y = {0};                                                                      \
        for (uint32_t turn = 0; turn < TURNS; turn++) {                                                                \
            _Pragma("GCC unroll 12") for (uint32_t i = 0; i < CHAINS; i++)                                             \
            {                                                                                                          \
                TYPE product;                                                                                          \
                __asm__(INSTRUCTIONS                                                                                   \
                        : "+" CONSTRAINT(acc[i]), "=&" CONSTRAINT(product)                                             \
                        : CONSTRAINT(x), CONSTRAINT(y));                                                               \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 12") for (uint32_t i = 0; i < CHAINS; i++) __asm__ volatile("" ::CONSTRAINT(acc[i]));      \
    }
DEFINE_TURNS(turns_avx512, "avx512f", __m512i, "v", "vpdpbusd %3, %2, %0")
DEFINE_TURNS(turns_avxvnni, "avx2", __m256i, "x", "%{vex%} vpdpbusd %3, %2, %0")
DEFINE_TURNS(turns_avx2, "avx2", __m256i, "x", "vpmaddubsw %3, %2, %1\n\tvpmaddwd %3, %1, %1\n\tvpaddd %1, %0, %0")
DEFINE_TURNS(turns_nibbles, "avx2", __m256i, "x", "vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0")
DEFINE_TURNS(turns_fma512, "avx512f", __m512, "v", "vfmadd231ps %3, %2, %0")
DEFINE_TURNS(turns_fma256, "avx2,fma", __m256, "x", "vfmadd231ps %3, %2, %0")

/* Calls per nanosecond. */
static double turns_rate(void (*turns)(void))
{
    uint64_t start_ns = clock_cpu_ns(), now_ns;
    double count = 0;
    do {
        turns();
        count++;
        now_ns = clock_cpu_ns();
    } while (now_ns - start_ns < TIME_NS);
    return count / (double)(now_ns - start_ns);
}

/* The same work so many times, one behind the other, as long as a step of a small model. It touches no memory. */
#define REPEATS   150u
#define REPEAT_NS 20000000u

struct steadiness {
    double change;           /* of the time on a processor, from one to the next, on average */
    double fastest, slowest; /* tenths, of the median */
};

static struct steadiness measure_steadiness(void (*turns)(void))
{
    struct samples times = {0};
    double count = turns_rate(turns) * REPEAT_NS, before_ns = 0, change = 0;
    for (uint32_t repeat = 0; repeat < REPEATS; repeat++) {
        uint64_t start_ns = clock_cpu_ns();
        for (double i = 0; i < count; i++)
            turns();
        double took_ns = (double)(clock_cpu_ns() - start_ns);
        change += repeat > 0 ? fabs(before_ns / took_ns - 1) / (REPEATS - 1) : 0;
        samples_add(&times, before_ns = took_ns);
    }
    samples_sort(&times);
    double median_ns = samples_percentile(&times, 0.5);
    struct steadiness steadiness = {change, samples_percentile(&times, 0.1) / median_ns,
                                    samples_percentile(&times, 0.9) / median_ns};
    samples_free(&times);
    return steadiness;
}

/* ---- what caches and memory give ---- */

#define PIECE 8192u /* bytes read between two looks at the clock, at least */

__attribute__((target("avx512f"))) static void read_512(const uint8_t *from)
{
    for (uint32_t i = 0; i < PIECE; i += 512)
        _Pragma("GCC unroll 8") for (uint32_t j = 0; j < 512; j += 64) __asm__ volatile(
            "vmovdqu64 %0, %%zmm0" ::"m"(*(const uint8_t(*)[64])(from + i + j)) : "xmm0");
}

__attribute__((target("avx2"))) static void read_256(const uint8_t *from)
{
    for (uint32_t i = 0; i < PIECE; i += 256)
        _Pragma("GCC unroll 8") for (uint32_t j = 0; j < 256; j += 32) __asm__ volatile(
            "vmovdqu %0, %%ymm0" ::"m"(*(const uint8_t(*)[32])(from + i + j)) : "xmm0");
}

static cpu_set_t allowed; /* processors that this program was given */

/* What a core reads, over and over. */
struct reader {
    size_t bytes, at;
    uint8_t *memory;
    uint32_t core; /* its place among those that this process may use */
    pthread_barrier_t *start;
    double rate; /* bytes per nanosecond */
};

static void pin(uint32_t core)
{
    cpu_set_t one;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && core-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            check(pthread_setaffinity_np(pthread_self(), sizeof(one), &one) == 0);
            return;
        }
}

static void *read_on(void *context)
{
    struct reader *reader = context;
    bool is_wide = __builtin_cpu_supports("avx512f");
    double bytes = 0;
    pin(reader->core);
    if (reader->memory == NULL) {
        reader->memory = base_alloc_aligned(4096, reader->bytes);
        memset(reader->memory, 1, reader->bytes); /* by the core that will read it */
    }
    pthread_barrier_wait(reader->start);
    uint64_t start_ns = clock_cpu_ns(), now_ns;
    do {
        for (uint32_t i = 0; i < 16; i++) {
            (is_wide ? read_512 : read_256)(reader->memory + reader->at);
            reader->at = reader->at + PIECE < reader->bytes ? reader->at + PIECE : 0;
        }
        bytes += 16.0 * PIECE;
        now_ns = clock_cpu_ns();
    } while (now_ns - start_ns < TIME_NS);
    reader->rate = bytes / (double)(now_ns - start_ns);
    return NULL;
}

/* ---- a model that decodes ---- */

#define CONTEXT 128u
#define BLOCK   16u

struct decoder {
    struct gguf *gguf;
    struct model_desc desc;
    struct model_slice slice;
    struct forward forwards[CORES_MAX]; /* with a team of so many, less one */
    struct token_shm result;
    struct top_shm tops[LOGPROBS_MAX];
    uint32_t blocks[CONTEXT / BLOCK];
    double bytes; /* of weights that one token reads */
};

static void start_member(void *context, uint32_t part)
{
    (void)context;
    pin(part);
    kernels_thread_init();
}

static int decoder_open(struct decoder *decoder, const char *path, const struct kernels *kernels, struct err *err)
{
    struct model_desc *desc = &decoder->desc;
    int ret = gguf_open(&decoder->gguf, path, err);
    ret = ret ? ret : model_describe(desc, decoder->gguf, err);
    if (ret != 0)
        return ret;
    size_t bytes = model_slice_bytes(desc, 0, desc->layers);
    ret = model_load(&decoder->slice, desc, 0, desc->layers, base_alloc_aligned(4096, bytes), decoder->gguf, err);
    if (ret != 0)
        return ret;
    for (uint32_t i = 0; i < CONTEXT / BLOCK; i++)
        decoder->blocks[i] = i;
    decoder->bytes =
        (double)bytes - (desc->tied ? 0 : matrix_bytes(desc->embedding_form, desc->vocab_size, desc->width));
    const struct forward_limits limits = {.positions_max = CONTEXT, .block_size = BLOCK, .kv_type = KV_F16};
    for (uint32_t cores = 1; cores <= min_u64((uint32_t)CPU_COUNT(&allowed), CORES_MAX) && ret == 0; cores++) {
        struct team *team;
        uint8_t *kv = base_alloc_aligned(4096, CONTEXT / BLOCK * forward_block_stride(desc, desc->layers, &limits));
        ret = team_open(&team, cores, start_member, NULL, err);
        forward_init(&decoder->forwards[cores - 1], kernels, team, desc, &decoder->slice, &limits, kv);
    }
    return ret;
}

static void decode(struct decoder *decoder, uint32_t cores)
{
    const struct row_shm row = {.first_pos = CONTEXT - 1,
                                .token_count = 1,
                                .block_count = CONTEXT / BLOCK,
                                .result_count = 1,
                                .flags = ROW_SAMPLE};
    const struct forward_step step = {
        .rows = &row, .row_count = 1, .tokens = &decoder->result.token, .token_count = 1, .blocks = decoder->blocks};
    forward_run(&decoder->forwards[cores - 1], &step, NULL, NULL, &decoder->result, decoder->tops);
}

/* ---- measurements ---- */

enum kind { DOT, FMA, READ, PRODUCT, ATTENTION, DECODE };

struct measurement {
    enum kind kind;
    const struct kernels *path;
    enum dot dot;
    struct reader readers[CORES_MAX];
    uint32_t cores;
    struct measure_product product;
    struct attention attention;
    struct decoder *decoder;
    struct samples rates; /* operations or bytes per nanosecond */
};

static double read_rate(struct measurement *m)
{
    pthread_t threads[CORES_MAX];
    pthread_barrier_t start;
    double sum = 0;
    pthread_barrier_init(&start, NULL, m->cores);
    for (uint32_t i = 0; i < m->cores; i++) {
        m->readers[i].core = i;
        m->readers[i].start = &start;
        check(pthread_create(&threads[i], NULL, read_on, &m->readers[i]) == 0);
    }
    for (uint32_t i = 0; i < m->cores; i++) {
        pthread_join(threads[i], NULL);
        sum += m->readers[i].rate;
    }
    pthread_barrier_destroy(&start);
    return sum;
}

/* Operations (with DECODE: bytes) of one run. */
static double run_once(struct measurement *m)
{
    switch (m->kind) {
    case PRODUCT:
        measure_product_run(&m->product, m->path, 1);
        return measure_product_operations(&m->product);
    case ATTENTION: /* scores and values of every query head: a multiply-add for each float of a head */
        m->path->attention(&m->attention);
        return 4 * measure_attention_pairs(&m->attention) * m->attention.heads * m->attention.head_dim;
    case DECODE:
        decode(m->decoder, m->cores);
        return m->decoder->bytes;
    default:
        check(false);
    }
}

static double measure(struct measurement *m)
{
    static void (*const turns[])(void) = {turns_avx512, turns_avxvnni, turns_avx2, turns_nibbles};
    bool is_wide = __builtin_cpu_supports("avx512f");
    if (m->kind == DOT)
        return turns_rate(turns[m->dot]) * TURNS * CHAINS * dots[m->dot].operations;
    if (m->kind == FMA)
        return turns_rate(is_wide ? turns_fma512 : turns_fma256) * TURNS * CHAINS * (is_wide ? 32 : 16);
    if (m->kind == READ)
        return read_rate(m);
    uint64_t (*time_ns)(void) = m->kind == DECODE && m->cores > 1 ? clock_ns : clock_cpu_ns; /* a team waits, too */
    double sum = 0;
    uint64_t start_ns = time_ns(), now_ns;
    do {
        sum += run_once(m);
        now_ns = time_ns();
    } while (now_ns - start_ns < TIME_NS);
    return sum / (double)(now_ns - start_ns);
}

/* ---- the table ---- */

static const uint32_t row_counts[] = {1, 4, 16, 32, 64};
static const struct {
    const char *name;
    size_t bytes;
} levels[] = {
    {"read 24 KiB", 24 << 10}, {"read 256 KiB", 256 << 10}, {"read 4 MiB", 4 << 20}, {"read 256 MiB", 256 << 20}};

/* Of SmolLM2-135M: Q, K and V, in a core's second-level cache; gate and up of as many layers as no cache holds; half the
 * head. goal: percent of the peak, with VNNI and 16 rows or more; 0: none. */
#define WIDTH 576u
static const struct {
    const char *name;
    enum matrix_form form;
    uint32_t n, copies;
    int goal;
} products[] = {{"Q4, in cache", MATRIX_Q4, 960, 1, 45},
                {"Q4, streamed", MATRIX_Q4, 3072, 72, 35},
                {"Q8, streamed", MATRIX_Q8, 24576, 6, 0}};
static const struct {
    const char *name;
    enum kv_type type;
    uint32_t context, rows;
} attentions[] = {
    {"attention f16, decode behind 255", KV_F16, 256, 1}, {"attention f16, decode behind 2047", KV_F16, 2048, 1},
    {"attention f16, prompt of 256", KV_F16, 256, 256},   {"attention f16, 64 behind 1984", KV_F16, 2048, 64},
    {"attention q8, decode behind 2047", KV_Q8, 2048, 1}, {"attention q8, 64 behind 1984", KV_Q8, 2048, 64}};

struct bench {
    struct measurement dot, nibbles, fma;
    struct measurement reads[ARRAY_COUNT(levels)][CORES_MAX];
    struct measurement products[ARRAY_COUNT(products)][ARRAY_COUNT(row_counts)];
    struct measurement attentions[ARRAY_COUNT(attentions)];
    struct measurement decode[CORES_MAX];
    struct measurement *all[64]; /* those that are made, in the order of measuring */
    uint32_t count;
};

static void add(struct bench *bench, struct measurement *m)
{
    check(bench->count < ARRAY_COUNT(bench->all));
    bench->all[bench->count++] = m;
}

static void make_limits(struct bench *bench)
{
    bench->dot = (struct measurement){.kind = DOT, .dot = best_dot()};
    bench->nibbles = (struct measurement){.kind = DOT, .dot = DOT_NIBBLES};
    bench->fma = (struct measurement){.kind = FMA};
    add(bench, &bench->dot);
    if (bench->dot.dot == DOT_AVX2)
        add(bench, &bench->nibbles);
    add(bench, &bench->fma);
    for (size_t i = 0; i < ARRAY_COUNT(levels); i++)
        for (uint32_t cores = 1; cores <= min_u64((uint32_t)CPU_COUNT(&allowed), CORES_MAX); cores++) {
            struct measurement *m = &bench->reads[i][cores - 1];
            *m = (struct measurement){.kind = READ, .cores = cores};
            for (uint32_t core = 0; core < cores; core++)
                m->readers[core].bytes = levels[i].bytes;
            add(bench, m);
        }
}

static void make_kernels(struct bench *bench, const struct kernels *path)
{
    for (size_t i = 0; i < ARRAY_COUNT(products); i++)
        for (size_t r = 0; r < ARRAY_COUNT(row_counts); r++) {
            struct measurement *m = &bench->products[i][r];
            *m = (struct measurement){.kind = PRODUCT, .path = path};
            measure_product_make(&m->product, products[i].form, products[i].n, WIDTH, row_counts[r],
                                 products[i].copies);
            add(bench, m);
        }
    for (size_t i = 0; i < ARRAY_COUNT(attentions); i++) {
        struct measurement *m = &bench->attentions[i];
        *m = (struct measurement){.kind = ATTENTION, .path = path};
        measure_attention_make(&m->attention, attentions[i].type, attentions[i].context, attentions[i].rows);
        add(bench, m);
    }
}

static double median(struct measurement *m)
{
    samples_sort(&m->rates);
    return samples_percentile(&m->rates, 0.5);
}

static void print_limits(struct bench *bench)
{
    printf("this processor                            one core    two cores\n");
    printf("  %-40s %7.1f               GOPS\n", dots[bench->dot.dot].name, median(&bench->dot));
    if (bench->dot.dot == DOT_AVX2)
        printf("  %-40s %7.1f               GOPS\n", dots[DOT_NIBBLES].name, median(&bench->nibbles));
    printf("  %-40s %7.1f               GFLOPS\n", "float multiply-adds", median(&bench->fma));
    for (size_t i = 0; i < ARRAY_COUNT(levels); i++)
        printf("  %-40s %7.1f %12.1f  GB/s\n", levels[i].name, median(&bench->reads[i][0]),
               bench->reads[i][1].cores > 0 ? median(&bench->reads[i][1]) : NAN);
}

static void print_share(const char *name, double rate, const char *unit, double limit, const char *of, int goal)
{
    printf("  %-32s %7.1f %-6s  %5.1f %% of %s", name, rate, unit, 100 * rate / limit, of);
    if (goal > 0)
        printf(" (goal: %d)", goal);
    putchar('\n');
}

static void print_kernels(struct bench *bench, double memory)
{
    bool has_vnni = bench->dot.dot != DOT_AVX2;
    printf("kernels of %s, one core\n", bench->products[0][0].path->name);
    for (size_t i = 0; i < ARRAY_COUNT(products); i++) {
        bool is_nibbles = products[i].form == MATRIX_Q4 && !has_vnni;
        for (size_t r = 0; r < ARRAY_COUNT(row_counts); r++) {
            struct measurement *m = &bench->products[i][r];
            char name[64];
            snprintf(name, sizeof(name), "%s, %u row%s", products[i].name, row_counts[r], row_counts[r] > 1 ? "s" : "");
            print_share(name, median(m), "GOPS", median(is_nibbles ? &bench->nibbles : &bench->dot),
                        is_nibbles ? "nibbles by int8" : "int8",
                        has_vnni && row_counts[r] >= 16 ? products[i].goal : 0);
            double bytes = (double)matrix_bytes(products[i].form, products[i].n, WIDTH);
            if (row_counts[r] == 1 && products[i].copies > 1)
                print_share("  weights that it reads", median(m) * bytes / measure_product_operations(&m->product),
                            "GB/s", memory, "memory's stream", 0);
        }
    }
    for (size_t i = 0; i < ARRAY_COUNT(attentions); i++)
        print_share(attentions[i].name, median(&bench->attentions[i]), "GFLOPS", median(&bench->fma), "multiply-adds",
                    0);
}

static void print_steadiness(void)
{
    printf("the same %u ms of float multiply-adds, %u times\n", REPEAT_NS / 1000000, REPEATS);
    for (uint32_t core = 0; core < min_u64((uint32_t)CPU_COUNT(&allowed), CORES_MAX); core++) {
        pin(core);
        struct steadiness steadiness =
            measure_steadiness(__builtin_cpu_supports("avx512f") ? turns_fma512 : turns_fma256);
        printf("  core %u: %.1f %% from one to the next; nine of ten take at least %.2f, at most %.2f of the median\n",
               core, 100 * steadiness.change, steadiness.fastest, steadiness.slowest);
    }
}

int main(int argc, char **argv)
{
    static struct bench bench;
    static struct decoder decoder;
    struct err err = {0};
    if (argc > 2 || best_dot() == DOT_NONE) {
        fprintf(stderr, argc > 2 ? "usage: bench-limits [MODEL.gguf]\n" : "bench-limits: this processor lacks AVX2\n");
        return 2;
    }
    check(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
    kernels_thread_init();
    pin(0);
    make_limits(&bench);
    make_kernels(&bench, kernels_pick(NULL));
    if (argc == 2) {
        if (decoder_open(&decoder, argv[1], kernels_pick(NULL), &err) != 0) {
            fprintf(stderr, "bench-limits: %s\n", err.text);
            return 1;
        }
        for (uint32_t cores = 1; cores <= min_u64((uint32_t)CPU_COUNT(&allowed), CORES_MAX); cores++) {
            bench.decode[cores - 1] = (struct measurement){.kind = DECODE, .decoder = &decoder, .cores = cores};
            add(&bench, &bench.decode[cores - 1]);
        }
    }
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (uint32_t i = 0; i < bench.count; i++)
            samples_add(&bench.all[i]->rates, measure(bench.all[i]));

    double memory = median(&bench.reads[ARRAY_COUNT(levels) - 1][0]);
    print_limits(&bench);
    print_kernels(&bench, memory);
    const struct measurement *streams = bench.reads[ARRAY_COUNT(levels) - 1];
    for (uint32_t cores = 1; argc == 2 && cores <= CORES_MAX && streams[cores - 1].cores > 0; cores++) {
        double rate = median(&bench.decode[cores - 1]);
        printf("the model, one sequence behind 127 tokens, %s\n", cores == 1 ? "one core" : "two cores");
        print_share("weights that it reads", rate, "GB/s", median(&bench.reads[ARRAY_COUNT(levels) - 1][cores - 1]),
                    "memory's stream", cores == 1 ? 70 : 0);
        printf("  %-32s %7.1f\n", "tokens a second", 1e9 * rate / decoder.bytes);
    }
    print_steadiness();
    return 0;
}
