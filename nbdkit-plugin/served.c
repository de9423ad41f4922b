/* SPDX-License-Identifier: Apache-2.0 */
#include "nbdkit-plugin/served.h"

#include <stdlib.h>
#include <string.h>

void
served_set_init(struct served_set *set)
{
    (void)pthread_mutex_init(&set->mutex, NULL);
    (void)pthread_cond_init(&set->changed, NULL);
    list_init(&set->volumes);
}

static struct served *
served_find(struct served_set *set, const char *name)
{
    struct served *served;

    list_for_each_entry (served, &set->volumes, node) {
        if (strcmp(served->name, name) == 0)
            return served;
    }
    return NULL;
}

/* With the mutex. */
static void
served_remove(struct served_set *set, struct served *served)
{
    list_remove(&served->node);
    free(served);
    (void)pthread_cond_broadcast(&set->changed);
}

/* With the mutex, which is given back meanwhile: others find the volume as OPENING and wait. */
static int
served_open(struct served_set *set, struct dlblk_client *client, const char *name, uint32_t flags,
            struct served **ret_served, struct dl_error *err)
{
    struct served *served = calloc(1, sizeof(*served));
    int result;

    if (served == NULL)
        return dl_error_set(err, -ENOMEM, "out of memory");
    memcpy(served->name, name, strlen(name) + 1);
    served->state = SERVED_OPENING;
    list_push_back(&set->volumes, &served->node);

    (void)pthread_mutex_unlock(&set->mutex);
    result = dlblk_volume_open(client, name, flags, &served->volume, err);
    if (result == 0)
        block_io_init(&served->io, served->volume);
    (void)pthread_mutex_lock(&set->mutex);

    if (result != 0) {
        served_remove(set, served);
        return result;
    }
    served->state = SERVED_OPEN;
    served->connection_count = 1;
    (void)pthread_cond_broadcast(&set->changed);
    *ret_served = served;
    return 0;
}

/* With the mutex. */
static int
served_acquire_locked(struct served_set *set, struct dlblk_client *client, const char *name,
                      uint32_t flags, struct served **ret_served, struct dl_error *err)
{
    struct served *served;

    while ((served = served_find(set, name)) != NULL && served->state != SERVED_OPEN)
        (void)pthread_cond_wait(&set->changed, &set->mutex);
    if (served == NULL)
        return served_open(set, client, name, flags, ret_served, err);
    served->connection_count++;
    *ret_served = served;
    return 0;
}

int
served_acquire(struct served_set *set, struct dlblk_client *client, const char *name,
               uint32_t flags, struct served **ret_served, struct dl_error *err)
{
    int result;

    if (strlen(name) > DLBLK_NAME_BYTES_MAX) {
        return dl_error_set(err, -DL_E_NAME_INVALID,
                            "the name of %zu bytes is too long: volumes have at most %u",
                            strlen(name), DLBLK_NAME_BYTES_MAX);
    }
    (void)pthread_mutex_lock(&set->mutex);
    result = served_acquire_locked(set, client, name, flags, ret_served, err);
    (void)pthread_mutex_unlock(&set->mutex);
    return result;
}

int
served_release(struct served_set *set, struct served *served, struct dl_error *err)
{
    int result = 0;

    (void)pthread_mutex_lock(&set->mutex);
    dl_assert(served->state == SERVED_OPEN);
    dl_assert(served->connection_count > 0);
    if (--served->connection_count == 0) {
        served->state = SERVED_CLOSING;
        (void)pthread_mutex_unlock(&set->mutex);
        block_io_fini(&served->io);
        result = dlblk_volume_close(served->volume, err);
        (void)pthread_mutex_lock(&set->mutex);
        served_remove(set, served);
    }
    (void)pthread_mutex_unlock(&set->mutex);
    return result;
}

/* With the mutex, which is given back meanwhile. */
static int
served_close(struct served_set *set, struct served *served, struct dl_error *err)
{
    int result;

    while (served->state == SERVED_OPENING)
        (void)pthread_cond_wait(&set->changed, &set->mutex);
    if (served->state != SERVED_OPEN)
        return 0;
    served->state = SERVED_CLOSED;
    (void)pthread_mutex_unlock(&set->mutex);
    result = dlblk_volume_close(served->volume, err);
    (void)pthread_mutex_lock(&set->mutex);
    return result;
}

int
served_set_close(struct served_set *set, struct dl_error *err)
{
    struct dl_error later;
    struct served *served;
    int result = 0;

    (void)pthread_mutex_lock(&set->mutex);
    list_for_each_entry (served, &set->volumes, node) {
        int close_result = served_close(set, served, result == 0 ? err : &later);

        if (result == 0)
            result = close_result;
    }
    (void)pthread_mutex_unlock(&set->mutex);
    return result;
}
