/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ISA-L does the long ones.  Two things around it on x86:
 *
 * - Its AVX-512 form returns with the upper halves of the vector registers in use.  Whatever SSE
 *   instruction comes next then waits for some 350 ns, wherever that is: a vzeroupper after each
 *   call takes 1 ns.
 * - Below 256 bytes the processor's own CRC instruction is as fast, and leaves the vector unit
 *   alone: headers and bodies of frames are that short.
 */
#include "common/crc32c.h"

#include <isa-l/crc.h>
#include <stdbool.h>
#include <string.h>

/* ISA-L counts in int; a multiple of its block size. */
#define CHUNK_BYTES_MAX (1u << 30)

#if defined(__x86_64__)

#define SHORT_BYTES_MAX 255u

static inline bool
short_is_fast(void)
{
    return __builtin_cpu_supports("sse4.2") != 0;
}

/* Without the inversions, as ISA-L's. */
__attribute__((target("sse4.2"))) static uint32_t
crc32c_short(const unsigned char *position, size_t length_bytes, uint32_t crc)
{
    uint64_t wide = crc;

    for (; length_bytes >= sizeof(wide); length_bytes -= sizeof(wide)) {
        uint64_t word;

        memcpy(&word, position, sizeof(word));
        wide = __builtin_ia32_crc32di(wide, word);
        position += sizeof(word);
    }
    crc = (uint32_t)wide;
    for (; length_bytes > 0; length_bytes--)
        crc = __builtin_ia32_crc32qi(crc, *position++);
    return crc;
}

static inline void
vector_unit_clean(void)
{
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vzeroupper" ::: "memory");
}

#else

#define SHORT_BYTES_MAX 0u

static inline bool
short_is_fast(void)
{
    return false;
}

static uint32_t
crc32c_short(const unsigned char *position, size_t length_bytes, uint32_t crc)
{
    (void)position;
    (void)length_bytes;
    return crc;
}

static inline void
vector_unit_clean(void)
{
}

#endif

uint32_t
crc32c(uint32_t crc, const void *data, size_t length_bytes)
{
    /* ISA-L only reads, although it takes the buffer without const. */
    unsigned char *position = (unsigned char *)(uintptr_t)data;

    crc = ~crc; /* ISA-L leaves the inversions to its callers */
    if (length_bytes <= SHORT_BYTES_MAX && short_is_fast())
        return ~crc32c_short(position, length_bytes, crc);
    while (length_bytes > CHUNK_BYTES_MAX) {
        crc = crc32_iscsi(position, CHUNK_BYTES_MAX, crc);
        position += CHUNK_BYTES_MAX;
        length_bytes -= CHUNK_BYTES_MAX;
    }
    crc = crc32_iscsi(position, (int)length_bytes, crc);
    vector_unit_clean();
    return ~crc;
}
