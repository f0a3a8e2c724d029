#include "tools/picture.h"

#include <string.h>

#include "ipc/base.h"

#define NUMBERS_COLUMNS 60u /* of a line with all numbers of a stage */
#define DRAWING_MIN     16u /* columns that a drawing beside them needs */
#define INDENT          2u
#define DRAWING_MAX     512u

/* "48.2 MiB" */
static const char *size_text(char text[32], uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes / 1024;
    uint32_t unit = 0;
    for (; value >= 999.95 && unit + 1 < ARRAY_COUNT(units); unit++)
        value /= 1024;
    snprintf(text, 32, "%.1f %s", value, units[unit]);
    return text;
}

/* The layers in at most `room` columns, the ends included. */
static void draw_layers(FILE *out, const struct picture_stage *stage, uint32_t layers, uint32_t room)
{
    char line[DRAWING_MAX + 1];
    uint32_t cells = (uint32_t)min_u64(layers, min_u64(room - 2, DRAWING_MAX));
    uint32_t first = (uint32_t)((uint64_t)stage->first_layer * cells / layers);
    uint32_t end = (uint32_t)((uint64_t)(stage->first_layer + stage->layer_count) * cells / layers);
    memset(line, '.', cells);
    memset(line + first, '#', max_u64(end - first, 1)); /* one that is too small to be seen is seen */
    line[cells] = '\0';
    bool is_first = stage->first_layer == 0, is_last = stage->first_layer + stage->layer_count == layers;
    fprintf(out, "%c%s%s\n", is_first ? 'E' : ' ', line, is_last ? "H" : "");
}

static void draw_wide(FILE *out, const struct picture_stage *stage, uint32_t number, double share, uint32_t layers,
                      uint32_t columns)
{
    char range[24], weights[32], kv[32];
    snprintf(range, sizeof(range), "%u-%u", stage->first_layer, stage->first_layer + stage->layer_count - 1);
    fprintf(out, "%5u %9s %12s %12s %8.2f ms  %3.0f %%", number, range, size_text(weights, stage->weights_bytes),
            size_text(kv, stage->kv_bytes), stage->step_us / 1e3, 100 * share);
    bool is_beside = columns >= NUMBERS_COLUMNS + INDENT + DRAWING_MIN;
    fputs(is_beside ? "  " : "\n  ", out);
    draw_layers(out, stage, layers, columns - INDENT - (is_beside ? NUMBERS_COLUMNS : 0));
}

static void draw_narrow(FILE *out, const struct picture_stage *stage, uint32_t number, double share, uint32_t layers,
                        uint32_t columns)
{
    char text[32];
    fprintf(out, "stage %u\n  layers %u-%u\n", number, stage->first_layer, stage->first_layer + stage->layer_count - 1);
    fprintf(out, "  weights %s\n", size_text(text, stage->weights_bytes));
    fprintf(out, "  KV %s\n", size_text(text, stage->kv_bytes));
    fprintf(out, "  %.2f ms, %.0f %%\n  ", stage->step_us / 1e3, 100 * share);
    draw_layers(out, stage, layers, columns - INDENT);
}

void picture_split(FILE *out, const struct picture_stage *stages, uint32_t count, uint32_t layers, uint32_t columns)
{
    double sum_us = 0;
    for (uint32_t i = 0; i < count; i++)
        sum_us += stages[i].step_us;
    bool is_wide = columns >= NUMBERS_COLUMNS;
    columns = (uint32_t)max_u64(columns, PICTURE_COLUMNS_MIN);
    if (is_wide)
        fprintf(out, "%5s %9s %12s %12s %11s %6s\n", "stage", "layers", "weights", "KV", "step", "share");
    for (uint32_t i = 0; i < count; i++)
        (is_wide ? draw_wide : draw_narrow)(out, &stages[i], i, stages[i].step_us / sum_us, layers, columns);
}
