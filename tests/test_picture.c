#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "tests/command.h"
#include "tools/picture.h"

static char *picture(const struct picture_stage *stages, uint32_t count, uint32_t layers, uint32_t columns)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    picture_split(out, stages, count, layers, columns);
    fclose(out);
    return text;
}

Test(picture, shows_layers_bytes_and_shares)
{
    static const struct picture_stage stages[] = {{0, 3, 48 << 20, 3 << 19, 3000}, {3, 1, 60 << 20, 1 << 19, 1000}};
    char *text = picture(stages, 2, 4, 100);
    cr_expect_str_eq(text, "stage    layers      weights           KV        step  share\n"
                           "    0       0-2     48.0 MiB      1.5 MiB     3.00 ms   75 %  E###.\n"
                           "    1       3-3     60.0 MiB    512.0 KiB     1.00 ms   25 %   ...#H\n");
    free(text);
}

/* Stages of many sizes, one of them too small to be seen beside the others. */
static uint32_t split(struct picture_stage *stages, uint32_t layers)
{
    uint32_t count = 0;
    for (uint32_t first = 0; first < layers; count++) {
        uint32_t layer_count = count == 1 ? 1 : (uint32_t)min_u64(layers - first, 1 + count * 7 % 40);
        stages[count] = (struct picture_stage){first, layer_count, layer_count * 123456789ull, layer_count << 20, 1};
        first += layer_count;
    }
    return count;
}

Test(picture, no_line_is_longer_than_the_terminal_and_every_stage_is_seen)
{
    static struct picture_stage stages[512];
    static const uint32_t layers[] = {1, 2, 30, 80, 512};
    for (uint32_t columns = PICTURE_COLUMNS_MIN; columns < 700; columns++)
        for (size_t i = 0; i < ARRAY_COUNT(layers); i++) {
            uint32_t count = split(stages, layers[i]), drawings = 0;
            char *text = picture(stages, count, layers[i], columns);
            for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
                cr_assert_leq(strlen(line), columns, "%u layers in %u columns: %s", layers[i], columns, line);
                drawings += strchr(line, '#') != NULL;
            }
            cr_assert_eq(drawings, count, "%u layers in %u columns", layers[i], columns);
            free(text);
        }
}

Test(picture, inspect_draws_the_split_that_it_is_given)
{
    static struct outcome outcome;
    cr_assert_eq(command_run(&outcome, "inspect tests/data/archs/gemma3.gguf -p 2 --split 1,2", NULL), 0, "%s",
                 outcome.err);
    cr_expect(strstr(outcome.out, "split over 2 stages") != NULL, "%s", outcome.out);
    cr_expect(strstr(outcome.out, "E#..\n") != NULL, "%s", outcome.out);
    cr_expect(strstr(outcome.out, " .##H\n") != NULL, "%s", outcome.out);
    cr_assert_eq(command_run(&outcome, "inspect tests/data/archs/gemma3.gguf --tensors", NULL), 0, "%s", outcome.err);
    cr_expect(strstr(outcome.out, "general.architecture                     \"gemma3\"\n") != NULL, "%s", outcome.out);
    cr_expect(strstr(outcome.out, "gemma3.block_count                       3\n") != NULL, "%s", outcome.out);
    cr_expect_eq(command_run(&outcome, "inspect tests/data/archs/gemma3.gguf -p 4", NULL), 2);
    cr_expect(strstr(outcome.err, "3 layers") != NULL, "%s", outcome.err);
    cr_expect_eq(command_run(&outcome, "inspect tests/data/archs/gemma3.gguf --split 2,2", NULL), 2);
    cr_expect(strstr(outcome.err, "--split") != NULL, "%s", outcome.err);
}
