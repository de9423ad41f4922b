/* SPDX-License-Identifier: Apache-2.0 */
/*
 * le.h: little-endian integers as they stand in frames and on disk.
 *
 * A le32 is not a number: a forgotten conversion does not compile.  It is made of bytes and so has
 * no alignment: a struct of these has no padding, and may be laid over a buffer at any address.
 * The compiler turns each of these functions into one instruction.
 *
 * Threads: any.  Errors: none.
 */
#ifndef DLBLK_COMMON_LE_H
#define DLBLK_COMMON_LE_H

#include <assert.h>
#include <endian.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8_t bytes[2];
} le16;

typedef struct {
    uint8_t bytes[4];
} le32;

typedef struct {
    uint8_t bytes[8];
} le64;

static_assert(sizeof(le16) == 2 && _Alignof(le16) == 1, "le16");
static_assert(sizeof(le32) == 4 && _Alignof(le32) == 1, "le32");
static_assert(sizeof(le64) == 8 && _Alignof(le64) == 1, "le64");

static inline uint16_t
le16_get(le16 field)
{
    uint16_t raw;

    memcpy(&raw, field.bytes, sizeof(raw));
    return le16toh(raw);
}

static inline uint32_t
le32_get(le32 field)
{
    uint32_t raw;

    memcpy(&raw, field.bytes, sizeof(raw));
    return le32toh(raw);
}

static inline uint64_t
le64_get(le64 field)
{
    uint64_t raw;

    memcpy(&raw, field.bytes, sizeof(raw));
    return le64toh(raw);
}

static inline le16
le16_of(uint16_t value)
{
    uint16_t raw = htole16(value);
    le16 field;

    memcpy(field.bytes, &raw, sizeof(raw));
    return field;
}

static inline le32
le32_of(uint32_t value)
{
    uint32_t raw = htole32(value);
    le32 field;

    memcpy(field.bytes, &raw, sizeof(raw));
    return field;
}

static inline le64
le64_of(uint64_t value)
{
    uint64_t raw = htole64(value);
    le64 field;

    memcpy(field.bytes, &raw, sizeof(raw));
    return field;
}

static inline void
le16_set(le16 *field, uint16_t value)
{
    *field = le16_of(value);
}

static inline void
le32_set(le32 *field, uint32_t value)
{
    *field = le32_of(value);
}

static inline void
le64_set(le64 *field, uint64_t value)
{
    *field = le64_of(value);
}

/* From and to plain bytes at any address. */
static inline uint16_t
le16_load(const void *bytes)
{
    le16 field;

    memcpy(&field, bytes, sizeof(field));
    return le16_get(field);
}

static inline uint32_t
le32_load(const void *bytes)
{
    le32 field;

    memcpy(&field, bytes, sizeof(field));
    return le32_get(field);
}

static inline uint64_t
le64_load(const void *bytes)
{
    le64 field;

    memcpy(&field, bytes, sizeof(field));
    return le64_get(field);
}

static inline void
le16_store(void *bytes, uint16_t value)
{
    le16 field = le16_of(value);

    memcpy(bytes, &field, sizeof(field));
}

static inline void
le32_store(void *bytes, uint32_t value)
{
    le32 field = le32_of(value);

    memcpy(bytes, &field, sizeof(field));
}

static inline void
le64_store(void *bytes, uint64_t value)
{
    le64 field = le64_of(value);

    memcpy(bytes, &field, sizeof(field));
}

#endif
