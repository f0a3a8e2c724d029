#include "tests/hostile.h"

#include <criterion/criterion.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/http.h"

#define TABLE      "tests/data/hostile.txt"
#define CASES_MAX  500u
#define BYTES_MAX  200000u /* of a request */
#define LINE_BYTES 8192u
#define EXTRAS_MAX 512u

/* The case being read. */
struct draft {
    char when[32], path[64];
    char head[BYTES_MAX], body[BYTES_MAX];
    size_t head_size, body_size;
    bool has_head, has_body;
};

static void put(char *target, size_t *size, const char *bytes, size_t count)
{
    cr_assert_leq(*size + count, BYTES_MAX);
    memcpy(target + *size, bytes, count);
    *size += count;
}

/* Text up to `end`, with <NN> for a byte and <N*text> for a repetition. */
static void put_text(char *target, size_t *size, const char *text, const char *end)
{
    while (text < end) {
        char *behind;
        unsigned long count = text[0] == '<' && isdigit((unsigned char)text[1]) ? strtoul(text + 1, &behind, 10) : 0;
        if (count > 0 && *behind == '*') {
            const char *close = behind + 1;
            for (int depth = 1; depth > 0 && close < end; close++)
                depth += (*close == '<') - (*close == '>');
            for (; count > 0; count--)
                put_text(target, size, behind + 1, close - 1);
            text = close;
        } else if (text[0] == '<' && isxdigit((unsigned char)text[1]) && isxdigit((unsigned char)text[2]) &&
                   text[3] == '>') {
            char byte = (char)strtoul((char[]){text[1], text[2], '\0'}, NULL, 16);
            put(target, size, &byte, 1);
            text += 4;
        } else {
            put(target, size, text++, 1);
        }
    }
}

static char *quoted(const char *word)
{
    static char text[2][128];
    static int turn;
    turn = !turn;
    snprintf(text[turn], sizeof(text[turn]), strcmp(word, "-") == 0 ? "null" : "\"%s\"", word);
    return text[turn];
}

/* A word or line of the table behind what a string holds already. */
static void append(char *target, size_t room, const char *text, const char *end)
{
    size_t size = strlen(target);
    cr_assert_lt(size + strlen(text) + strlen(end), room, "%s: too long: %s", TABLE, text);
    strcpy(stpcpy(target + size, text), end);
}

static void assign(char *target, size_t room, const char *text)
{
    target[0] = '\0';
    append(target, room, text, "");
}

/* What the line "< STATUS PARAM CODE MESSAGE" and the header fields behind it stand for. */
static char *error_answer(int status, const char *said, const char *extras)
{
    char param[64], code[64], body[LINE_BYTES];
    int message = 0;
    cr_assert_eq(sscanf(said, "%*d %63s %63s %n", param, code, &message), 2, "%s", said);
    const char *type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
    snprintf(body, sizeof(body), "{\"error\":{\"message\":\"%s\",\"type\":\"%s\",\"param\":%s,\"code\":%s}}",
             said + message, type, quoted(param), quoted(code));
    char *answer;
    cr_assert_gt(asprintf(&answer,
                          "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n%s", status,
                          http_status_text(status), strlen(body), extras, body),
                 0);
    return answer;
}

/* The draft and what is said of its answer become a case; the draft is empty again. */
static struct hostile_case finish(struct draft *draft, int line, const char *said, const char *extras)
{
    struct hostile_case new = {
        .line = line, .status = atoi(said), .closes = strstr(extras, "Connection: close") != NULL};
    cr_assert(draft->has_head || draft->has_body, "%s:%d: an answer to nothing", TABLE, line);
    strcpy(new.when, draft->when);
    if (!draft->has_head) {
        char head[256];
        int size = snprintf(head, sizeof(head), "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
                            draft->path, draft->body_size);
        put(draft->head, &draft->head_size, head, (size_t)size);
    }
    new.request_size = draft->head_size + draft->body_size;
    new.request = malloc(new.request_size + 1);
    memcpy(new.request, draft->head, draft->head_size);
    memcpy(new.request + draft->head_size, draft->body, draft->body_size);
    if (strchr(said, ' ') != NULL)
        new.answer = error_answer(new.status, said, extras);
    draft->head_size = draft->body_size = 0;
    draft->has_head = draft->has_body = false;
    return new;
}

struct hostile_case *hostile_cases(const char *when, size_t *count)
{
    static struct draft draft;
    static struct hostile_case cases[CASES_MAX];
    char text[LINE_BYTES], said[LINE_BYTES] = "", extras[EXTRAS_MAX] = "";
    int said_line = 0;
    FILE *file = fopen(TABLE, "re");
    cr_assert_not_null(file, "%s is not there: run from the top folder", TABLE);
    *count = 0;
    for (int line = 1;; line++) {
        bool is_end = fgets(text, sizeof(text), file) == NULL;
        text[is_end ? 0 : strcspn(text, "\n")] = '\0';
        bool is_extra = strncmp(text, "<< ", 3) == 0;
        if (said[0] != '\0' && !is_extra) {
            struct hostile_case new = finish(&draft, said_line, said, extras);
            cr_assert_lt(*count, CASES_MAX);
            if (strcmp(new.when, when) == 0)
                cases[(*count)++] = new;
            said[0] = extras[0] = '\0';
        }
        if (is_end)
            break;
        if (is_extra) {
            append(extras, sizeof(extras), text + 3, "\r\n");
        } else if (strncmp(text, "when ", 5) == 0) {
            assign(draft.when, sizeof(draft.when), text + 5);
        } else if (strncmp(text, "to ", 3) == 0) {
            assign(draft.path, sizeof(draft.path), text + 3);
        } else if (text[0] == '>') {
            put_text(draft.head, &draft.head_size, text + 1 + (text[1] == ' '), text + strlen(text));
            put(draft.head, &draft.head_size, "\r\n", 2);
            draft.has_head = true;
        } else if (text[0] == '+') {
            put_text(draft.body, &draft.body_size, text + 1 + (text[1] == ' '), text + strlen(text));
            draft.has_body = true;
        } else if (text[0] == '<') {
            assign(said, sizeof(said), text + 2);
            said_line = line;
        } else {
            cr_assert(text[0] == '#' || text[0] == '\0', "%s:%d: %s", TABLE, line, text);
        }
    }
    fclose(file);
    return cases;
}
