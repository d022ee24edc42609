/** What an engine is built from. */
import type { Clock } from "../clock.ts";
import type { FailPoints } from "../fail-points.ts";
import type { FileSystem } from "../files/file-system.ts";
import type { Executors } from "../sqlite/executor.ts";
import type { RemoteStage } from "../stages/remote.ts";
import type { StageName } from "./engine.ts";
import type { OperationLimits } from "./operations.ts";
import type { SyncLimits } from "./sync/sync.ts";

/** Bounds of the engine; each has a setting of the same name. */
export interface EngineLimits extends OperationLimits {
  /** Database handles kept in memory; one in use is never dropped. */
  readonly openDatabaseCountMax: number;
  /** Page size of new databases. */
  readonly pageBytes: number;
  /** Longest pause between two commands of a transaction. */
  readonly transactionIdleMsMax: number;
  /** Longest life of a transaction. */
  readonly transactionTotalMsMax: number;
  /** Longest wait for a min_position. */
  readonly positionWaitMsMax: number;
  /** Calls of one database that may wait for a min_position. */
  readonly positionWaitCountMax: number;
  /** Flushes running at one time, over all databases. */
  readonly flushConcurrencyMax: number;
  /** WAL descriptors held open for flushing. */
  readonly flushDescriptorCountMax: number;
  /** A WAL descriptor that nobody needed for this long is closed. */
  readonly flushDescriptorIdleMs: number;
  /** Frames in a WAL from which it is checkpointed. */
  readonly checkpointFrames: number;
  /** Frames in a WAL from which writes pause for a moment so that it can start over. */
  readonly checkpointPauseFrames: number;
  /** Longest such pause; a transaction that is open longer makes it fail, and it is tried again later. */
  readonly checkpointPauseMsMax: number;
  /** Checkpoints running at one time, over all databases. */
  readonly checkpointConcurrencyMax: number;
  /** Without a write for this long, a WAL above `checkpointFrames` is emptied. */
  readonly checkpointIdleMs: number;
  /** Frames in a WAL from which writes are refused: a long read keeps it from starting over. */
  readonly walFramesMax: number;
  /** Frames in a WAL from which the reads that keep it from starting over are ended. */
  readonly readFramesMax: number;
  /** Size of each of the two files of the redo log. */
  readonly redoFileBytes: number;
  /** Files of logs written at one time, over all databases. */
  readonly sealConcurrencyMax: number;
  /** Size of a file of the log from which the next commits go into a new one. */
  readonly batchBytesMax: number;
  readonly labelCountMax: number;
  /** Databases looked at for one page of ListDatabases; a page may come back short, with a token to go on. */
  readonly listScanCountMax: number;
  /** How long a repeated CreateDatabase with the same request_id gets the first answer. */
  readonly createRecordMs: number;
  /** How long DeleteDatabase waits for running calls before it ends them. */
  readonly deleteGraceMs: number;
  /** How long close() waits for running calls before it ends them. */
  readonly closeGraceMs: number;
  /** Pause between two rounds of the one timer: access times, idle checkpoints, idle descriptors. */
  readonly tidyMs: number;
}

/** When databases move between stages; each has a setting of the same name. */
export interface PlacementSettings {
  /** False: only calls of StageService move databases. */
  readonly autoMovement: boolean;
  /** Where a new database lives that asks for no stage: 1 memory, 2 local, 3 remote. */
  readonly defaultCreationStage: number;
  /** The farthest stage that data is carried to. */
  readonly persistenceStage: number;
  /** Without a call for this long a database moves one stage farther. */
  readonly timeoutMs: number;
  /** That many calls within the window move it one stage closer. */
  readonly requestCountThreshold: number;
  readonly requestWindowMs: number;
  /** After a move the policy leaves the database where it is for so long. */
  readonly cooldownMs: number;
  /** Moves under way at one time. */
  readonly moveConcurrencyMax: number;
  /** How long a move waits for the writes under way before it is given up. */
  readonly moveWaitMsMax: number;
  /** Remote databases that are brought to the local disk for a call at one time. */
  readonly hydrationConcurrencyMax: number;
}

/** What a stage may hold. */
export interface StageBudget {
  /** 0: a part of what its file system has. */
  readonly bytesMax: number;
  /** 0: no bound. */
  readonly databaseCountMax: number;
}

/** The closer stages; the remote one is passed by itself. */
export interface StagesOptions {
  readonly settings: PlacementSettings;
  readonly displayNames: Readonly<Record<StageName, string>>;
  /** A folder of a tmpfs that is this engine's alone; undefined: there is no memory stage. */
  readonly memory: (StageBudget & { readonly directoryPath: string }) | undefined;
  readonly local: StageBudget;
}

/** Told about what an operator should know. Never called with SQL or parameters. */
export type EngineLog = (
  level: "info" | "warn" | "error",
  message: string,
  facts: Readonly<Record<string, unknown>>,
) => void;

/** How databases are carried to the remote stage. */
export interface SyncOptions {
  /** False: only SyncDatabase, REMOTE writes, moves and the end of the server carry anything. */
  readonly isAutomatic: boolean;
  /** How long the end of the server may take to upload what is left. */
  readonly closeGraceMs: number;
  readonly limits: SyncLimits;
}

export interface EngineOptions {
  /** STORAGE_LOCAL_DIRECTORY_PATH; made when missing. */
  readonly directoryPath: string;
  /** The engine calls `tidy()`; whoever made it closes it, after the engine. */
  readonly executors: Executors;
  readonly clock: Clock;
  /** That many bytes that nobody can guess. */
  readonly random: (byteCount: number) => Uint8Array;
  readonly log: EngineLog;
  readonly limits: EngineLimits;
  /** The farthest stage; without it databases stay in the local folder. The engine does not close its store. */
  readonly remote?: RemoteStage | undefined;
  /** Without it nothing is carried to the remote stage. */
  readonly sync?: SyncOptions | undefined;
  /** Only the local stage, and nothing moves, when left out. */
  readonly stages?: StagesOptions;
  /** The machine's own when left out. */
  readonly fileSystem?: FileSystem;
  /** Told of every step that changes durable state; for tests. */
  readonly failPoints?: FailPoints;
}
