/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scrub.h: looking at everything that is kept here: the scrub (scrub_internal.h), and what is known
 * of bad sectors, whoever found them (finding.c).  docs/recovery.md, bad sectors.
 *
 * Threads: the core's.  Blocks: never.  Errors: none; without memory a scrub is refused and asked
 * for again.
 */
#ifndef DLBLK_CHUNKSERVER_SCRUB_H
#define DLBLK_CHUNKSERVER_SCRUB_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/core_internal.h"

/* --- scrub.c --- */

struct scrub *scrub_create(struct chunkserver_core *core);
void scrub_free(struct scrub *scrub);
/* What is not with the store or in a link is forgotten; idle when that is back. */
void scrub_stop(struct scrub *scrub);
bool scrub_is_idle(const struct scrub *scrub);
/* Registered; the first time in this life the scrub of the disk goes on where it was. */
void scrub_on_registered(struct scrub *scrub, const Dl__ScrubPosition *position);
void scrub_on_map(struct scrub *scrub, const struct frame *frame);
/* The sector that repair_by_scrub() was asked for. */
void scrub_on_repaired(struct scrub *scrub, enum repair_outcome outcome);
/* SCRUB_VOLUME of the metadata service. */
void scrub_volume_receive(struct scrub *scrub, const struct frame *frame,
                          const Dl__ScrubVolume *message);
void scrub_tick(struct scrub *scrub, uint64_t now_ns);
void scrub_fill_position(const struct scrub *scrub, Dl__ScrubPosition *position);

/* --- finding.c --- */

struct findings *findings_create(struct chunkserver_core *core);
void findings_free(struct findings *findings);
void findings_stop(struct findings *findings);
/* Read, and as it should be. */
void findings_read(struct findings *findings, const struct chunk_key *key, uint32_t first_sector,
                   uint32_t end_sector, uint32_t data_sectors);
/* A write of this version, or a pull, is durable: what it has replaced is not bad any more. */
void findings_written(struct findings *findings, const struct chunk_key *key, uint32_t first_sector,
                      uint32_t sector_count, uint64_t version);
/* The chunk has begun an attempt: what became void is pulled. */
void findings_voided(struct findings *findings, const struct chunk *chunk);
/*
 * It was bad (version 0: in which one is not known); healed: it is not any more.  hopeless_epoch:
 * the segment's config epoch, if under it no other slot in-sync has this version right; else 0.
 */
void findings_bad(struct findings *findings, const struct chunk *chunk, uint32_t sector,
                  uint64_t version, bool healed, uint32_t hopeless_epoch);
/* The version in which it is bad, if nobody has that under the chunk's config epoch; else 0. */
uint64_t findings_hopeless(const struct findings *findings, const struct chunk *chunk,
                           uint32_t sector);
/* Two slots have different content under one version, or one lacks what all should have. */
void findings_mismatch(struct findings *findings, const struct chunk_key *key,
                       uint32_t first_sector, uint32_t count, uint32_t other_slot);
void findings_on_reply(struct findings *findings, uint64_t request_id, int status);
void findings_fill_counts(struct findings *findings, Dl__ScrubCounts *counts);
/* Those that are bad still, by volume; after findings_fill_counts().  How many volumes. */
#define FINDINGS_VOLUMES_MAX 64u
uint32_t findings_fill_volumes(const struct findings *findings,
                               Dl__BadVolume volumes[FINDINGS_VOLUMES_MAX]);

#endif
