/** Puts back, before any database is opened, what WALs lack after the machine died. */
import { LtxFailure } from "./ltx-failure.ts";
import type { RedoRecord } from "./redo-record.ts";
import { decodeWalHeader, type WalHeader, walHeaderBytes } from "./wal-format.ts";
import type { WalSource } from "./wal-reader.ts";

/** A WAL that is written to while nobody has it open. An empty one is made where there is none. */
export interface ReplayTarget extends WalSource {
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Resolves when the bytes, and the file's name, are on the disk. */
  flush(): Promise<void>;
  close(): Promise<void>;
}

/** What a replay did. */
export interface ReplaySummary {
  readonly walCount: number;
  readonly recordCount: number;
}

/**
 * Applies records in the order of their generations. Of each WAL only its last life counts, unless that one was forgotten,
 * or the WAL on the disk has started over since: putting an old WAL beside a newer database would mix two states. Running it again does no harm, as long as no database
 * was opened in between. `openWal` answers undefined for a database that is gone.
 */
export async function replayRedo(
  records: readonly RedoRecord[],
  openWal: (key: string) => Promise<ReplayTarget | undefined>,
): Promise<ReplaySummary> {
  let walCount = 0;
  let recordCount = 0;
  for (const [key, wanted] of lastLives(records)) {
    const target = await openWal(key);
    if (target === undefined) continue;
    try {
      if (await hasStartedOver(target, wanted)) continue;
      for (const { walOffset, bytes } of wanted) await target.write(walOffset, bytes);
      await target.flush();
      walCount++;
      recordCount += wanted.length;
    } finally {
      await target.close();
    }
  }
  return { walCount, recordCount };
}

/** SQLite flushes the header of a WAL before its first frame: what the disk has is never older than what was logged. */
async function hasStartedOver(target: ReplayTarget, [record]: readonly RedoRecord[]): Promise<boolean> {
  const bytes = Buffer.alloc(walHeaderBytes);
  const length = await target.read(0, bytes);
  let header: WalHeader | undefined;
  try {
    header = decodeWalHeader(bytes.subarray(0, length));
  } catch (error) {
    // Not a WAL of any life: what was logged takes its place.
    if (error instanceof LtxFailure) return false;
    throw error;
  }
  if (header === undefined || record === undefined) return false;
  return header.walSalt1 !== record.walSalt1 || header.walSalt2 !== record.walSalt2;
}

function lastLives(records: readonly RedoRecord[]): ReadonlyMap<string, readonly RedoRecord[]> {
  const lives = new Map<string, RedoRecord[]>();
  const inOrder = [...records].sort((a, b) => Number(a.generation - b.generation));
  for (const record of inOrder) {
    const life = lives.get(record.key);
    const isSame = life?.[0]?.walSalt1 === record.walSalt1 && life[0].walSalt2 === record.walSalt2;
    if (record.kind === "forget") {
      // Also when the life before it is the last one that was logged: the forgotten one came after it.
      lives.delete(record.key);
    } else if (isSame) {
      life?.push(record);
    } else {
      lives.set(record.key, [record]);
    }
  }
  return lives;
}
