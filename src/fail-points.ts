/**
 * Named steps between which the server may end at any moment. Everything that changes durable state says when it reaches one.
 * Tests pass an object that ends the process or the simulated machine there; the program passes none, so that nothing can
 * be set off from outside.
 */

/** Each is reached by the tests of test/simulation or test/engine; a test fails when one is not reached any more. */
export const failPoints = [
  // The log of one database: flushes of its WAL, alone or by the redo log.
  "wal.flush.begin",
  "wal.flush.end",
  "redo.write.begin",
  "redo.write.end",
  "redo.forgotten",
  // A seal: the committed frames were scanned; the file is whole and flushed, without its name; it has its name; the name is
  // flushed.
  "seal.scanned",
  "seal.written",
  "seal.named",
  "seal.end",
  // A batch is closed: the next one is open, and nothing is written yet; the closed one is on the disk.
  "batch.opened",
  "batch.closed",
  // A closed batch that nobody needs any more is about to lose its file, has lost it.
  "batch.release.begin",
  "batch.release.end",
  // A checkpoint in the order pinned, sealed, copied back, released.
  "checkpoint.pinned",
  "checkpoint.sealed",
  "checkpoint.copied",
  "checkpoint.end",
  // Facts of a database: the new file is flushed, without its name; it has its name.
  "facts.written",
  "facts.named",
  // Life of a database on the local disk.
  "create.made",
  "create.named",
  "create.end",
  "delete.named",
  "delete.end",
  // Upload of a batch: before the put; the put was answered; the engine knows and has noted it.
  "upload.begin",
  "upload.stored",
  "upload.noted",
  "manifest.begin",
  "manifest.stored",
  // Upkeep of a replica: objects are merged into one that is stored; others are deleted.
  "compact.begin",
  "compact.stored",
  "snapshot.begin",
  "snapshot.stored",
  "expire.begin",
  "expire.end",
  // The remote copy of a deleted database goes: nothing is gone; the manifest is; the objects are; the catalog has
  // forgotten it for good; the local trace is gone.
  "tombstone.begin",
  "tombstone.unpublished",
  "tombstone.emptied",
  "catalog.flushed",
  "tombstone.end",
  // Another server has taken the history: noted on the disk.
  "fence.noted",
  // A database that only the bucket knows is in the catalog.
  "discover.noted",
  // The head in memory: batches are about to be applied to the local base; they are, flushed; the base's position is noted.
  "base.apply.begin",
  "base.apply.flushed",
  "base.apply.noted",
  // A move of the head: nothing is done; the copy is whole; it has followed the closed batches; writes are paused and the last
  // batch is in it; the facts name it; it executes.
  "move.begin",
  "move.copied",
  "move.followed",
  "move.paused",
  "move.noted",
  "move.switched",
  "move.end",
  // A head goes because a farther replica, verified, has everything.
  "drop.verified",
  "drop.paused",
  "drop.noted",
  "drop.end",
  // A remote database gets a head: nothing is there; its file is whole and flushed, without its name; it has its name; the
  // facts say so.
  "hydrate.begin",
  "hydrate.written",
  "hydrate.named",
  "hydrate.end",
  // Restore in place and fork.
  "restore.stored",
  "restore.noted",
  "restore.published",
  "restore.dropped",
  "restore.end",
  "fork.stored",
  "fork.published",
  "fork.end",
] as const;

export type FailPoint = (typeof failPoints)[number];

export interface FailPoints {
  /**
   * The step is reached. May not return in a test: it ends the process. Never throws. What a caller does after it must be
   * able to be missing.
   */
  reach(point: FailPoint): void;
}

/** Those of the program. */
export const noFailPoints: FailPoints = {
  reach: () => undefined,
};
