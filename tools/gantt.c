#include "tools/gantt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pipeline.h"

#define WIDTH     1120.0
#define LEFT      76.0
#define RIGHT     24.0
#define HEAD      54.0 /* above the first panel: the legend */
#define TITLE     26.0 /* of a panel */
#define STAGE     20.0
#define LINK      5.0
#define GAP       3.0 /* between a stage and a link */
#define PANEL_GAP 18.0
#define AXIS      44.0
#define COLUMN    2.0 /* pixels over which shares are taken where bars are too thin */
#define THIN      3.0 /* pixels: thinner bars on average are shown as shares */
#define PREFILL   "#f0a030"
#define DECODE    "#3973c6"
#define TRANSFER  "#9aa3ad"
#define INK       "#22262b"
#define INK_LIGHT "#6b737c"

enum colour { COLOUR_PREFILL, COLOUR_DECODE, COLOUR_TRANSFER, COLOUR_COUNT };
static const char *const colours[] = {PREFILL, DECODE, TRANSFER};

struct picture {
    FILE *out;
    double from_us, to_us;
    char *paths[COLOUR_COUNT];
    size_t sizes[COLOUR_COUNT];
    FILE *path_files[COLOUR_COUNT]; /* rectangles of the panel that is drawn, by colour */
};

static double x_of(const struct picture *picture, double time_us)
{
    double share = (time_us - picture->from_us) / (picture->to_us - picture->from_us);
    return LEFT + (WIDTH - LEFT - RIGHT) * fmin(1, fmax(0, share));
}

static void box(struct picture *picture, enum colour colour, double x, double y, double width, double height)
{
    if (width > 0 && height > 0)
        fprintf(picture->path_files[colour], "M%.4g %.4gh%.3gv%.3gh-%.3gz", x, y, width, height, width);
}

/* One server of a run: when each microbatch takes it. */
struct server {
    const struct sim *run;
    uint32_t index;
    bool is_link;
};

static void times_of(const struct server *server, const struct sim_span *span, double *start_us, double *end_us)
{
    *start_us = server->is_link ? span->link_start_us[server->index] : span->start_us[server->index];
    *end_us = server->is_link ? span->link_end_us[server->index] : span->end_us[server->index];
}

static double prefill_share(const struct sim_span *span)
{
    return span->tokens > 0 ? (double)span->prefill_tokens / span->tokens : 0;
}

/* A bar per microbatch, its colours in proportion to its tokens; a hair of white tells neighbours apart. */
static void draw_bars(struct picture *picture, const struct server *server, double y, double height)
{
    for (size_t i = 0; i < server->run->span_count; i++) {
        const struct sim_span *span = &server->run->spans[i];
        double start_us, end_us;
        times_of(server, span, &start_us, &end_us);
        if (end_us <= picture->from_us || start_us >= picture->to_us)
            continue;
        double x = x_of(picture, start_us), width = fmax(0.5, x_of(picture, end_us) - x - 0.6);
        double prefill = round(height * prefill_share(span));
        if (server->is_link) {
            box(picture, COLOUR_TRANSFER, x, y, width, height);
            continue;
        }
        box(picture, COLOUR_PREFILL, x, y, width, prefill);
        box(picture, COLOUR_DECODE, x, y + prefill, width, height - prefill);
    }
}

/* Columns whose coloured height is the share of their time; equal neighbours are one box. */
static void draw_shares(struct picture *picture, const struct server *server, double y, double height)
{
    size_t columns = (size_t)((WIDTH - LEFT - RIGHT) / COLUMN), next = 0;
    double column_us = (picture->to_us - picture->from_us) / (double)columns;
    double run_prefill = 0, run_decode = 0, run_x = LEFT;
    for (size_t column = 0; column <= columns; column++) {
        double from = picture->from_us + (double)column * column_us, to = from + column_us, prefill = 0, busy = 0;
        for (size_t i = next; column < columns && i < server->run->span_count; i++) {
            double start_us, end_us;
            times_of(server, &server->run->spans[i], &start_us, &end_us);
            if (start_us >= to)
                break;
            if (end_us < from) {
                next = i;
                continue;
            }
            double share = (fmin(end_us, to) - fmax(start_us, from)) / column_us;
            busy += share;
            prefill += share * prefill_share(&server->run->spans[i]);
        }
        double high_prefill = round(height * prefill), high_decode = round(height * fmin(1, busy)) - high_prefill;
        if (column < columns && high_prefill == run_prefill && high_decode == run_decode)
            continue;
        double x = LEFT + (double)column * COLUMN, base = y + height;
        box(picture, server->is_link ? COLOUR_TRANSFER : COLOUR_PREFILL, run_x, base - run_prefill, x - run_x,
            run_prefill);
        box(picture, server->is_link ? COLOUR_TRANSFER : COLOUR_DECODE, run_x, base - run_prefill - run_decode,
            x - run_x, run_decode);
        run_prefill = high_prefill;
        run_decode = high_decode;
        run_x = x;
    }
}

static bool are_thin(const struct picture *picture, const struct sim *run)
{
    size_t count = 0;
    for (size_t i = 0; i < run->span_count; i++)
        count += run->spans[i].end_us[0] > picture->from_us && run->spans[i].start_us[0] < picture->to_us;
    return (WIDTH - LEFT - RIGHT) / fmax(1, (double)count) < THIN;
}

static void text(struct picture *picture, double x, double y, const char *anchor, const char *style, const char *words)
{
    fprintf(picture->out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" %s>%s</text>\n", x, y, anchor, style, words);
}

static double panel_height(const struct sim *run)
{
    double stages = (double)run->plan.timing.stage_count;
    return TITLE + stages * STAGE + (stages - 1) * (LINK + 2 * GAP);
}

static void draw_title(struct picture *picture, const struct sim *run, double y)
{
    char words[256];
    double busy = 0, stages = (double)run->plan.timing.stage_count;
    struct pipeline_bounds bounds = pipeline_bounds(&run->plan.timing, &run->scenario, &run->plan);
    for (uint64_t i = 0; i < run->plan.timing.stage_count; i++)
        busy += run->busy_us[i] / run->makespan_us / stages;
    snprintf(words, sizeof(words),
             "<tspan font-weight=\"bold\">%s</tspan><tspan dx=\"10\" fill=\"" INK_LIGHT
             "\">%.1f s in all, stages busy %.0f %% of it, efficiency %.2f, %llu preemptions</tspan>",
             run->sched.policy->name, run->makespan_us / 1e6, 100 * busy, bounds.strict_us / run->makespan_us,
             (unsigned long long)run->sched.preemptions);
    text(picture, LEFT, y + 15, "start", "font-size=\"13\"", words);
}

static void draw_panel(struct picture *picture, const struct sim *run, double y)
{
    bool is_thin = are_thin(picture, run);
    draw_title(picture, run, y);
    y += TITLE;
    for (uint32_t c = 0; c < COLOUR_COUNT; c++)
        picture->path_files[c] = open_memstream(&picture->paths[c], &picture->sizes[c]);
    for (uint32_t i = 0; i < run->plan.timing.stage_count; i++) {
        char words[32];
        struct server stage = {run, i, false}, link = {run, i, true};
        snprintf(words, sizeof(words), "stage %u", i);
        text(picture, LEFT - 8, y + STAGE / 2 + 4, "end", "", words);
        fprintf(picture->out, "<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" fill=\"#fff\" stroke=\"#d5d9de\"/>\n",
                LEFT, y, WIDTH - LEFT - RIGHT, STAGE);
        (is_thin ? draw_shares : draw_bars)(picture, &stage, y, STAGE);
        y += STAGE + GAP;
        if (i + 1 < run->plan.timing.stage_count)
            (is_thin ? draw_shares : draw_bars)(picture, &link, y, LINK);
        y += LINK + GAP;
    }
    for (uint32_t c = 0; c < COLOUR_COUNT; c++) {
        check(fclose(picture->path_files[c]) == 0);
        if (picture->sizes[c] > 0)
            fprintf(picture->out, "<path fill=\"%s\" d=\"%s\"/>\n", colours[c], picture->paths[c]);
        free(picture->paths[c]);
    }
}

/* 1, 2 or 5 times a power of ten, so that there are about ten of them. */
static double tick_us(double span_us)
{
    double unit = pow(10, floor(log10(span_us / 10)));
    double rest = span_us / 10 / unit;
    return unit * (rest < 2 ? 2 : rest < 5 ? 5 : 10);
}

static void draw_grid(struct picture *picture, double top, double bottom)
{
    double tick = tick_us(picture->to_us - picture->from_us);
    fprintf(picture->out, "<g stroke=\"#e1e4e8\">");
    for (double t = ceil(picture->from_us / tick) * tick; t <= picture->to_us; t += tick)
        fprintf(picture->out, "<path d=\"M%.1f %.1fV%.1f\"/>", x_of(picture, t), top, bottom);
    fprintf(picture->out, "</g>\n<path d=\"M%.1f %.1fH%.1f\" stroke=\"" INK "\"/>\n", LEFT, bottom, WIDTH - RIGHT);
    for (double t = ceil(picture->from_us / tick) * tick; t <= picture->to_us; t += tick) {
        char words[32];
        snprintf(words, sizeof(words), "%.6g", t / 1e6);
        text(picture, x_of(picture, t), bottom + 15, "middle", "", words);
    }
    text(picture, WIDTH - RIGHT, bottom + 31, "end", "fill=\"" INK_LIGHT "\"", "seconds");
}

static void draw_legend(struct picture *picture, bool is_thin)
{
    static const char *const names[] = {"prefill", "decode", "transfer between stages"};
    double x = LEFT;
    for (uint32_t c = 0; c < COLOUR_COUNT; c++) {
        double height = c == COLOUR_TRANSFER ? LINK : 12;
        fprintf(picture->out, "<rect x=\"%g\" y=\"%g\" width=\"18\" height=\"%g\" fill=\"%s\"/>\n", x, 24 - height / 2,
                height, colours[c]);
        text(picture, x + 24, 28, "start", "", names[c]);
        x += 56 + 6.2 * (double)strlen(names[c]);
    }
    fprintf(picture->out, "<rect x=\"%g\" y=\"18\" width=\"18\" height=\"12\" fill=\"#fff\" stroke=\"#d5d9de\"/>\n", x);
    text(picture, x + 24, 28, "start", "", "idle");
    text(picture, WIDTH - RIGHT, 28, "end", "fill=\"" INK_LIGHT "\"",
         is_thin ? "height: share of the time" : "a bar: one microbatch");
}

int gantt_write(const char *path, const struct sim *runs, uint32_t count, double from_s, double to_s, struct err *err)
{
    double height = HEAD + AXIS, y = HEAD;
    struct picture picture = {.out = fopen(path, "we"), .from_us = from_s * 1e6, .to_us = to_s * 1e6};
    if (picture.out == NULL)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    for (uint32_t i = 0; i < count; i++) {
        height += panel_height(&runs[i]) + PANEL_GAP;
        if (to_s == 0)
            picture.to_us = fmax(picture.to_us, runs[i].makespan_us);
    }
    fprintf(picture.out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" font-family=\"Helvetica, Arial, "
            "sans-serif\" font-size=\"12\" fill=\"" INK "\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            WIDTH, height);
    draw_grid(&picture, HEAD, height - AXIS);
    draw_legend(&picture, are_thin(&picture, &runs[0]));
    for (uint32_t i = 0; i < count; i++) {
        draw_panel(&picture, &runs[i], y);
        y += panel_height(&runs[i]) + PANEL_GAP;
    }
    fprintf(picture.out, "</svg>\n");
    return fclose(picture.out) == 0 ? 0 : err_set(err, -errno, "%s: cannot write the file", path);
}
