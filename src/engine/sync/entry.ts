/** What syncing knows of one database; only of those that it has something to do for. */
import type { Clock } from "../../clock.ts";
import type { Job } from "./lane.ts";
import type { SyncLog } from "./sync.ts";
import type { Due } from "./timetable.ts";
import { Waits } from "./waits.ts";

/** What an entry calls when its time has come. */
export interface EntryWork {
  /** The upload is due. */
  readonly uploadDue: (entry: SyncEntry) => void;
  readonly upkeepDue: (entry: SyncEntry) => void;
  readonly upload: (entry: SyncEntry) => Promise<void>;
  readonly uploadEnded: (entry: SyncEntry) => void;
  readonly upkeep: (entry: SyncEntry) => Promise<void>;
  readonly upkeepEnded: (entry: SyncEntry) => void;
}

export class SyncEntry {
  readonly id: string;
  /** Those that wait for the remote stage to hold a TXID. */
  readonly waits: Waits<bigint>;
  /** Those that wait for the manifest to have an `etagVersion`. */
  readonly factsWaits: Waits<number>;
  readonly upload: Job;
  readonly uploadDue: Due;
  readonly upkeep: Job;
  readonly upkeepDue: Due;
  /** Ends what runs for it. */
  readonly controller = new AbortController();
  /** When the first commit came that no closed batch holds; undefined when there is none. By `now()`. */
  openSinceMs: number | undefined;
  /** When the first commit came that is not uploaded. */
  unsyncedSinceMs: number | undefined;
  /** Somebody asked for an upload since the last batch was closed. */
  isWanted = false;
  /** The manifest may lag behind the facts. */
  hasNewFacts = false;
  /** Bytes counted in the backlog. */
  bytes = 0;
  /** A stored file is damaged, and nothing here can make it good before the next batch is stored. */
  isDamaged = false;
  uploadFailures = 0;
  upkeepFailures = 0;
  isFenced = false;
  /** When a part of the history that is kept by the manifest alone may go, milliseconds since 1970. */
  retiredUntilMs: number | undefined;
  /** Its manifest may keep more than is known: it is an earlier server that knew. */
  mayHaveRetired = false;
  /** When its replica needs upkeep, as the catalog was told; milliseconds since 1970. */
  upkeepAtMs = Number.POSITIVE_INFINITY;
  /** What the log was the last time it was looked at: to account for its bytes without opening anything. */
  log: SyncLog | undefined;

  constructor(id: string, clock: Clock, work: EntryWork) {
    this.id = id;
    this.waits = new Waits(clock);
    this.factsWaits = new Waits(clock);
    this.upload = { run: () => work.upload(this), ended: () => work.uploadEnded(this) };
    this.upkeep = { run: () => work.upkeep(this), ended: () => work.upkeepEnded(this) };
    this.uploadDue = { dueAtMs: 0, place: -1, run: () => work.uploadDue(this) };
    this.upkeepDue = { dueAtMs: 0, place: -1, run: () => work.upkeepDue(this) };
  }

  /** Something of it is not uploaded, as far as is known. */
  get isUnsynced(): boolean {
    return this.unsyncedSinceMs !== undefined;
  }
}
