/* test_access.c - API keys and origins. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/access.h"
#include "ipc/plan.h"
#include "ipc/shm.h"

static int open_keys(struct access *access, const char *text, const char *origins, struct err *err)
{
    int fd = shm_create("keys", API_KEYS_BYTES_MAX, err);
    cr_assert_eq(pwrite(fd, text, strlen(text), 0), (ssize_t)strlen(text));
    return access_open(access, fd, origins, err);
}

Test(access, only_whole_keys_open)
{
    struct access access;
    struct err err = {0};
    cr_assert_eq(open_keys(&access, "# comment\nalpha\n\nbeta\r\ngamma", "", &err), 0, "%s", err.text);
    cr_expect_eq(access.key_count, 3);
    static const char *const good[] = {"Bearer alpha", "bearer beta", "Bearer gamma"};
    static const char *const bad[] = {"",
                                      "alpha",
                                      "Bearer",
                                      "Bearer ",
                                      "Bearer alph",
                                      "Bearer alphaa",
                                      "Bearer Alpha",
                                      "Bearer # comment",
                                      "Basic alpha",
                                      "Bearer  alpha"};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++)
        cr_expect(access_has_key(&access, good[i]), "%s", good[i]);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        cr_expect_not(access_has_key(&access, bad[i]), "%s", bad[i]);
}

Test(access, every_byte_of_the_longest_key_counts)
{
    struct access access;
    struct err err = {0};
    char line[ACCESS_KEY_BYTES_MAX + 8], given[ACCESS_KEY_BYTES_MAX + 16];
    memset(line, 'k', ACCESS_KEY_BYTES_MAX);
    line[ACCESS_KEY_BYTES_MAX] = '\0';
    cr_assert_eq(open_keys(&access, line, "", &err), 0);
    for (size_t i = 0; i <= ACCESS_KEY_BYTES_MAX; i++) {
        snprintf(given, sizeof(given), "Bearer %s", line);
        if (i < ACCESS_KEY_BYTES_MAX)
            given[7 + i] ^= 1;
        cr_expect_eq(access_has_key(&access, given), i == ACCESS_KEY_BYTES_MAX);
    }
    snprintf(given, sizeof(given), "Bearer %sk", line);
    cr_expect_not(access_has_key(&access, given));
}

Test(access, files_without_usable_keys_are_refused)
{
    struct access access;
    struct err err = {0};
    char *text = base_alloc(2 * ACCESS_KEY_BYTES_MAX);
    cr_expect_neq(open_keys(&access, "# nothing\n\n", "", &err), 0);
    cr_expect_neq(open_keys(&access, "two words\n", "", &err), 0);
    memset(text, 'k', ACCESS_KEY_BYTES_MAX + 1);
    cr_expect_neq(open_keys(&access, text, "", &err), 0);
    text = base_alloc(API_KEYS_BYTES_MAX);
    for (uint32_t i = 0; i <= ACCESS_KEYS_MAX; i++)
        strcat(text, "key\n");
    cr_expect_neq(open_keys(&access, text, "", &err), 0);
}

Test(access, origins_are_compared_whole)
{
    struct access access = {.origins = "https://a.example,http://localhost:3000"};
    cr_expect(access_allows_origin(&access, "https://a.example"));
    cr_expect(access_allows_origin(&access, "http://localhost:3000"));
    static const char *const bad[] = {"", "https://a.exampl", "https://a.example2", "null", ",", "http://localhost"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        cr_expect_not(access_allows_origin(&access, bad[i]), "%s", bad[i]);
    access.origins = "*";
    cr_expect(access_allows_origin(&access, "https://anybody.example"));
    cr_expect_not(access_allows_origin(&access, ""));
    access.origins = "";
    cr_expect_not(access_allows_origin(&access, "https://a.example"));
}
