#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bodies.h"

static struct bodies read_lines(const char *lines)
{
    char path[] = "/tmp/evenflow-test-bodies-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, lines, strlen(lines)), (ssize_t)strlen(lines));
    close(fd);
    struct bodies bodies;
    struct err err;
    cr_assert_eq(bodies_read(&bodies, path, &err), 0, "%s", err.text);
    unlink(path);
    return bodies;
}

static bool is_stream_with_usage(const struct body *body)
{
    json_t *root = json_loadb(body->text, body->size, 0, NULL);
    bool is_one = json_is_true(json_object_get(root, "stream")) &&
                  json_is_true(json_object_get(json_object_get(root, "stream_options"), "include_usage"));
    json_decref(root);
    return is_one;
}

Test(bodies, become_streams_and_go_where_they_belong)
{
    struct bodies bodies =
        read_lines("{\"prompt\":\"a\",\"stream\":false}\n\n{\"messages\":[],\"stream_options\":null}\r\n"
                   "{\"prompt\":\"c\",\"echo\":true,\"max_tokens\":0}");
    cr_assert_eq(bodies.count, 3);
    cr_expect_str_eq(bodies.list[0].path, "/v1/completions");
    cr_expect(is_stream_with_usage(&bodies.list[0]));
    cr_expect_str_eq(bodies.list[1].path, "/v1/chat/completions");
    cr_expect(is_stream_with_usage(&bodies.list[1]));
    cr_expect_str_eq(bodies.list[2].text, "{\"prompt\":\"c\",\"echo\":true,\"max_tokens\":0}");
    bodies_free(&bodies);
}

Test(bodies, keep_their_numbers_to_the_last_bit)
{
    struct bodies bodies =
        read_lines("{\"prompt\":\"a\",\"temperature\":0.1234567890123456,\"seed\":9007199254740993}\n");
    json_t *root = json_loadb(bodies.list[0].text, bodies.list[0].size, 0, NULL);
    cr_expect_eq(json_real_value(json_object_get(root, "temperature")), 0.1234567890123456);
    cr_expect_eq(json_integer_value(json_object_get(root, "seed")), 9007199254740993);
    json_decref(root);
    bodies_free(&bodies);
}

Test(bodies, lose_the_time_of_their_arrival)
{
    struct bodies bodies =
        read_lines("{\"prompt\":\"a\",\"arrival_s\":1.5}\n{\"prompt\":\"b\"}\n{\"prompt\":\"c\",\"arrival_s\":0}\n");
    cr_expect_eq(bodies.list[0].arrival_s, 1.5);
    cr_expect_null(strstr(bodies.list[0].text, "arrival_s"));
    cr_expect_lt(bodies.list[1].arrival_s, 0);
    cr_expect_eq(bodies.list[2].arrival_s, 0);
    bodies_free(&bodies);
}

Test(bodies, that_are_no_json_stay_as_they_are)
{
    struct bodies bodies = read_lines("{\"prompt\":\n[1]\n");
    cr_assert_eq(bodies.count, 2);
    cr_expect_str_eq(bodies.list[0].text, "{\"prompt\":");
    cr_expect_str_eq(bodies.list[1].text, "[1]");
    bodies_free(&bodies);
}

Test(bodies, name_the_file_that_cannot_be_read)
{
    struct bodies bodies;
    struct err err;
    cr_assert_neq(bodies_read(&bodies, "/nowhere/requests.jsonl", &err), 0);
    cr_expect(strstr(err.text, "/nowhere/requests.jsonl") != NULL, "%s", err.text);
    cr_assert_neq(bodies_read(&bodies, "/tmp", &err), 0);
}
