/** What decides where databases live, how they are carried outward, and what the stages are made of. */
import { bucket, bytes, count, flag, optionalText, optionalUrl, seconds, text } from "./setting.ts";

/** When databases move between stages. */
export const stageSettings = {
  autoMovement: flag(
    "SETTINGS_AUTO_STAGE_MOVEMENT",
    true,
    "Moves databases between stages by their use; false: only calls of StageService do.",
  ),
  defaultCreationStage: count(
    "SETTINGS_DEFAULT_DATABASE_CREATION_STAGE",
    3,
    { min: 1, max: 3 },
    "Stage of new databases: 1 memory, 2 local, 3 remote. Left out, never farther than SETTINGS_PERSISTENCE_STAGE. Where a stage is not there, the next closer one is taken.",
  ),
  persistenceStage: count(
    "SETTINGS_PERSISTENCE_STAGE",
    3,
    { min: 1, max: 3 },
    "Farthest stage that data is synced to.",
  ),
  timeoutMs: seconds(
    "SETTINGS_STAGE_TIMEOUT_SECONDS",
    300,
    { min: 1, max: 31_536_000 },
    "Time without a request after which a database moves one stage farther.",
  ),
  requestCountThreshold: count(
    "SETTINGS_REQUEST_COUNT_THRESHOLD",
    2,
    { min: 1, max: 1_000_000_000 },
    "Requests within the window after which a database moves one stage closer.",
  ),
  requestWindowMs: seconds(
    "SETTINGS_REQUEST_WINDOW_SECONDS",
    60,
    { min: 1, max: 86_400 },
    "The window in which requests are counted.",
  ),
  cooldownMs: seconds(
    "SETTINGS_STAGE_COOLDOWN_SECONDS",
    60,
    { min: 0, max: 86_400 },
    "Pause after a move before the policy moves the same database again.",
  ),
  autoSyncEnabled: flag(
    "SETTINGS_AUTO_SYNC_ENABLED",
    true,
    "Syncs databases to the persistence stage by itself; false: only on SyncDatabase, demotion and shutdown.",
  ),
  moveConcurrencyMax: count(
    "SETTINGS_MOVE_CONCURRENCY_COUNT",
    4,
    { min: 1, max: 256 },
    "Moves between stages under way at one time.",
  ),
  moveWaitMsMax: seconds(
    "SETTINGS_MOVE_WAIT_SECONDS",
    5,
    { min: 0, max: 600 },
    "How long a move waits for an open write transaction before it is given up, to be tried again later.",
  ),
  hydrationConcurrencyMax: count(
    "SETTINGS_HYDRATION_CONCURRENCY_COUNT",
    8,
    { min: 1, max: 1024 },
    "Remote databases brought to the local disk for a call at one time.",
  ),
};

/** Of the log of each database and of what is carried to the remote stage. */
export const syncSettings = {
  intervalMs: seconds(
    "SETTINGS_SYNC_INTERVAL_SECONDS",
    5,
    { min: 0.05, max: 86_400 },
    "How long after its first commit a database is synced; the commits of that time go up together.",
  ),
  retentionMs: seconds(
    "SETTINGS_RETENTION_SECONDS",
    86_400,
    { min: 0, max: 315_360_000 },
    "How far back RestoreDatabase and ForkDatabase reach; older history is removed from the remote stage.",
  ),
  uploadConcurrencyMax: count(
    "SETTINGS_UPLOAD_CONCURRENCY_COUNT",
    64,
    { min: 1, max: 1024 },
    "Uploads under way at one time, over all databases.",
  ),
  compactionConcurrencyMax: count(
    "SETTINGS_COMPACTION_CONCURRENCY_COUNT",
    4,
    { min: 1, max: 256 },
    "Compactions and snapshots of the remote stage under way at one time.",
  ),
  backoffMsMax: seconds(
    "SETTINGS_SYNC_BACKOFF_MAX_SECONDS",
    30,
    { min: 1, max: 3600 },
    "Longest pause between two attempts while the object store is away.",
  ),
  closeGraceMs: seconds(
    "SETTINGS_SYNC_CLOSE_GRACE_SECONDS",
    15,
    { min: 0, max: 3600 },
    "How long the end of the server waits for the upload of what is not synced; the rest goes up after the next start.",
  ),
};

/** What the stages are made of, and how much they hold. */
export const storageSettings = {
  memoryName: text("STORAGE_MEMORY_NAME", "Memory Storage", "Display name of the memory stage."),
  memoryDirectoryPath: optionalText(
    "STORAGE_MEMORY_DIRECTORY_PATH",
    "Folder of the memory stage, on a tmpfs. Left out: one of the local folder's own in /dev/shm, or no memory stage where that is no tmpfs.",
  ),
  memoryBytesMax: bytes(
    "STORAGE_MEMORY_BYTES_MAX",
    "0",
    { min: "0", max: "64TiB" },
    "Bytes of all databases on the memory stage; 0: half of the size of its file system.",
  ),
  memoryDatabaseCountMax: count(
    "STORAGE_MEMORY_DATABASE_COUNT_MAX",
    0,
    { min: 0, max: 100_000_000 },
    "Databases on the memory stage; 0: no bound.",
  ),
  localName: text("STORAGE_LOCAL_NAME", "Local Storage", "Display name of the local stage."),
  localDirectoryPath: text(
    "STORAGE_LOCAL_DIRECTORY_PATH",
    "./storage",
    "Folder of the databases and the catalog; one server at a time.",
  ),
  localBytesMax: bytes(
    "STORAGE_LOCAL_BYTES_MAX",
    "0",
    { min: "0", max: "1024TiB" },
    "Bytes of all databases and logs in the local folder; 0: nine tenths of the size of its file system.",
  ),
  localDatabaseCountMax: count(
    "STORAGE_LOCAL_DATABASE_COUNT_MAX",
    0,
    { min: 0, max: 100_000_000 },
    "Databases with files in the local folder; 0: no bound.",
  ),
  remoteName: text("STORAGE_REMOTE_NAME", "Remote Storage", "Display name of the remote stage."),
  remoteDirectoryPath: optionalText(
    "STORAGE_REMOTE_DIRECTORY_PATH",
    "Folder that serves as object store where no S3 is set. Left out: `remote` in the local folder; another disk than the local folder's survives its loss.",
  ),
  remoteAccessKeyId: optionalText(
    "STORAGE_REMOTE_ACCESS_KEY_ID",
    "Access key of the object store. With it or STORAGE_REMOTE_ENDPOINT the remote stage is S3.",
  ),
  remoteSecretKey: optionalText("STORAGE_REMOTE_SECRET_KEY", "Secret key of the object store.", { secret: true }),
  remoteBucketName: bucket("STORAGE_REMOTE_BUCKET_NAME", "sqlite-databases", "Bucket of the object store."),
  remoteEndpoint: optionalUrl(
    "STORAGE_REMOTE_ENDPOINT",
    "URL of the object store; left out with an access key: AWS. Without keys the machine's own credentials are taken.",
  ),
  remoteRegion: text("STORAGE_REMOTE_REGION", "auto", "Region of the object store; AWS needs its own."),
  remoteRequired: flag(
    "STORAGE_REMOTE_REQUIRED",
    true,
    "Ends the start with what is wrong with the object store; false: serves what is local until it is there.",
  ),
  unsyncedBytesMax: bytes(
    "STORAGE_UNSYNCED_BYTES_MAX",
    "4GiB",
    { min: "1MiB", max: "64TiB" },
    "Bytes that may wait for the remote stage while it is away; beyond them writes are refused.",
  ),
};
