#include "engine/access.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "ipc/plan.h"

static int add_key(struct access *access, const char *key, size_t size, struct err *err)
{
    if (size > ACCESS_KEY_BYTES_MAX || access->key_count == ACCESS_KEYS_MAX)
        return err_set(err, -EINVAL, "API keys: %u keys of %u bytes at most", ACCESS_KEYS_MAX, ACCESS_KEY_BYTES_MAX);
    for (size_t i = 0; i < size; i++)
        if (key[i] <= 0x20 || key[i] >= 0x7f)
            return err_set(err, -EINVAL, "API keys: key %u holds a blank or a character that is not ASCII",
                           access->key_count + 1);
    memcpy(access->keys[access->key_count++], key, size);
    return 0;
}

int access_open(struct access *access, int keys_fd, const char *origins, struct err *err)
{
    *access = (struct access){.origins = origins};
    if (keys_fd < 0)
        return 0;
    access->keys = base_alloc(ACCESS_KEYS_MAX * sizeof(*access->keys));
    char *text = base_alloc(API_KEYS_BYTES_MAX + 1);
    ssize_t size = pread(keys_fd, text, API_KEYS_BYTES_MAX, 0);
    close(keys_fd);
    int ret = size < 0 ? err_set(err, -errno, "API keys: %s", strerror(errno)) : 0;
    for (char *line = text; ret == 0 && line < text + size && *line != '\0';) {
        size_t length = strcspn(line, "\n");
        char *next = line + length + 1;
        length -= length > 0 && line[length - 1] == '\r';
        if (length > 0 && line[0] != '#')
            ret = add_key(access, line, length, err);
        line = next;
    }
    explicit_bzero(text, API_KEYS_BYTES_MAX);
    if (ret == 0 && access->key_count == 0)
        ret = err_set(err, -EINVAL, "API keys: the file holds none");
    return ret;
}

bool access_has_key(const struct access *access, const char *credentials)
{
    uint8_t given[ACCESS_KEY_BYTES_MAX] = {0};
    size_t size = 0;
    if (strncasecmp(credentials, "Bearer ", 7) == 0)
        size = strlen(credentials + 7);
    if (size > 0 && size <= sizeof(given))
        memcpy(given, credentials + 7, size);
    /* every byte of every key, whatever the ones before were */
    uint32_t found = 0;
    for (uint32_t k = 0; k < access->key_count; k++) {
        uint32_t difference = 0;
        for (uint32_t i = 0; i < ACCESS_KEY_BYTES_MAX; i++)
            difference |= (uint32_t)(given[i] ^ access->keys[k][i]);
        found |= (difference - 1) >> 31; /* 1 for a difference of 0 alone: others are less than 256 */
    }
    return found != 0;
}

bool access_allows_origin(const struct access *access, const char *origin)
{
    size_t size = strlen(origin);
    if (size == 0)
        return false;
    if (strcmp(access->origins, "*") == 0)
        return true;
    for (const char *at = access->origins; *at != '\0'; at += at[0] == ',') {
        size_t length = strcspn(at, ",");
        if (length == size && memcmp(at, origin, size) == 0)
            return true;
        at += length;
    }
    return false;
}
