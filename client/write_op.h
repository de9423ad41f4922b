/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write_op.h: writing one piece to all slots of its segment; zeroes too.
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_WRITE_OP_H
#define DLBLK_CLIENT_WRITE_OP_H

#include "client/volume_internal.h"

struct write_op;
typedef void (*write_op_fn)(struct write_op *op, int err);

enum write_op_flags {
    WRITE_OP_CLEARS =
        1u << 0, /* the content is zeroes; where nothing is allocated nothing needs to be done */
    WRITE_OP_ZERO = 1u << 1,    /* as a zero extent: whole sectors, as many as the chunk has */
    WRITE_OP_RESOLVE = 1u << 2, /* rewrites what slots disagree about */
};

size_t client_write_op_bytes(uint32_t slots_max);

/*
 * A piece of a request: client_volume_piece_done() follows.  The pool has one (the caller has
 * looked).
 */
void client_write_start(struct client_volume *volume, struct dlblk_request *request,
                        const struct io_piece *piece, unsigned flags);

/*
 * A write of our own, of whole sectors, to a segment that is allocated: no range lock, whatever the
 * segment's state.
 */
struct write_own {
    struct segment *segment;
    uint32_t first_sector;
    uint32_t sector_count;
    const void *buffer; /* NULL: zeroes */
    uint64_t settles;   /* the sequence of the failed write that it mends; 0: none */
    write_op_fn on_done;
    void *context;
};
/*
 * Has no deadline, and is not given up for what slots say: once sent, the same version with the
 * same bytes goes to the slots of every map until all have it.  volume->own_ops has one.  *ret_op
 * is set before anything happens; without memory or credit (-DL_E_BUSY) on_done runs inside this
 * call.
 */
void client_write_start_own(struct client_volume *volume, const struct write_own *own,
                            struct write_op **ret_op);
void *client_write_context(const struct write_op *op);
/* on_done follows with err, unless it has run. */
void client_write_abort(struct write_op *op, int err);

#endif
