/**
 * Every bound that an operator may change. Each group has the shape that its layer takes, so nothing below the settings
 * has a default of its own.
 */
import { bytes, count, seconds } from "./setting.ts";

/** Of sockets and messages. */
export const transportLimits = {
  readBytesMax: bytes("SERVER_READ_BYTES_MAX", "4MiB", { min: "1KiB", max: "64MiB" }, "Largest request message."),
  writeBytesMax: bytes("SERVER_WRITE_BYTES_MAX", "4MiB", { min: "64KiB", max: "64MiB" }, "Largest response message."),
  bytesHeldMax: bytes(
    "SERVER_HELD_BYTES_MAX",
    "512MiB",
    { min: "1MiB", max: "1TiB" },
    "Requests and unary answers in the server's memory, over all calls; beyond it requests are answered UNAVAILABLE.",
  ),
  readTimeoutMs: seconds(
    "SERVER_READ_TIMEOUT_SECONDS",
    10,
    { min: 0.1, max: 3600 },
    "How long a request's headers and its unary body may take to arrive.",
  ),
  writeTimeoutMs: seconds(
    "SERVER_WRITE_TIMEOUT_SECONDS",
    10,
    { min: 0.1, max: 3600 },
    "How long a response may make no progress because its reader does not read.",
  ),
  idleTimeoutMs: seconds(
    "SERVER_IDLE_TIMEOUT_SECONDS",
    15,
    { min: 0.1, max: 86_400 },
    "How long a connection without calls stays; it is then ended with GOAWAY.",
  ),
  deadlineMsMax: seconds(
    "SERVER_DEADLINE_MAX_SECONDS",
    3600,
    { min: 1, max: 86_400 },
    "Longest deadline of a call; a client's longer wish is cut to it. Statements have a shorter bound of their own.",
  ),
  headerBytesMax: bytes(
    "SERVER_HEADER_BYTES_MAX",
    "16KiB",
    { min: "4KiB", max: "256KiB" },
    "All headers of a request.",
  ),
  streamsPerConnectionMax: count(
    "SERVER_STREAMS_PER_CONNECTION_COUNT_MAX",
    1000,
    { min: 1, max: 100_000 },
    "Calls at one time on a connection: HTTP/2 streams, or requests in an HTTP/1.1 pipeline.",
  ),
  connectionCountMax: count("SERVER_CONNECTION_COUNT_MAX", 10_000, { min: 1, max: 1_000_000 }, "Open connections."),
  streamResetBurst: count(
    "SERVER_STREAM_RESET_BURST_COUNT",
    1000,
    { min: 10, max: 1_000_000 },
    "Cancelled calls that a connection may send in one burst before it is ended as a flood.",
  ),
  streamResetRate: count(
    "SERVER_STREAM_RESET_RATE_COUNT",
    200,
    { min: 1, max: 1_000_000 },
    "Cancelled calls a second that a connection may send for long.",
  ),
  compressBytesMin: bytes(
    "SERVER_COMPRESS_BYTES_MIN",
    "64KiB",
    { min: "1KiB", max: "64MiB" },
    "Responses from this size on are compressed with gzip for clients that accept it.",
  ),
  pingIntervalMs: seconds(
    "SERVER_PING_INTERVAL_SECONDS",
    60,
    { min: 1, max: 7200 },
    "How often connections with calls are pinged, so that proxies see life and dead peers are found.",
  ),
  pingTimeoutMs: seconds(
    "SERVER_PING_TIMEOUT_SECONDS",
    20,
    { min: 0.1, max: 600 },
    "How long a ping may stay unanswered.",
  ),
  connectionAgeMs: seconds(
    "SERVER_CONNECTION_AGE_SECONDS",
    0,
    { min: 0, max: 86_400 },
    "Age at which a connection is asked to leave (GOAWAY, with jitter), so that balancers by connection even out; 0: never.",
  ),
  connectionAgeGraceMs: seconds(
    "SERVER_CONNECTION_AGE_GRACE_SECONDS",
    300,
    { min: 1, max: 86_400 },
    "How long an aged connection may go on with the calls it has.",
  ),
};

/** Of executors and of the SQL that they run. */
export const executorLimits = {
  executorCountMin: count(
    "EXECUTOR_COUNT_MIN",
    0,
    { min: 0, max: 256 },
    "Executor processes that always run; 0: one for each core.",
  ),
  executorCountMax: count(
    "EXECUTOR_COUNT_MAX",
    0,
    { min: 0, max: 1024 },
    "Executor processes at most, while slow statements hold others; 0: four for each core, at least 8.",
  ),
  executorStallMs: seconds(
    "EXECUTOR_STALL_SECONDS",
    0.025,
    { min: 0.001, max: 60 },
    "A call waits this long behind another database's statement before it moves to another executor.",
  ),
  executorGraceMs: seconds(
    "EXECUTOR_GRACE_SECONDS",
    0.25,
    { min: 0.01, max: 60 },
    "An executor whose statement has not ended this long after its deadline is killed.",
  ),
  executorMemoryBytesMax: bytes(
    "EXECUTOR_MEMORY_BYTES_MAX",
    "1GiB",
    { min: "64MiB", max: "64GiB" },
    "Resident memory of an executor; above it the running statement is interrupted.",
  ),
  connectionCountMax: count(
    "EXECUTOR_CONNECTION_COUNT_MAX",
    1000,
    { min: 4, max: 100_000 },
    "Open SQLite connections of an executor; the least recently used is closed.",
  ),
  connectionIdleMs: seconds(
    "EXECUTOR_CONNECTION_IDLE_SECONDS",
    300,
    { min: 1, max: 86_400 },
    "A connection not used for this long is closed.",
  ),
  statementCacheCount: count(
    "EXECUTOR_STATEMENT_CACHE_COUNT",
    32,
    { min: 0, max: 10_000 },
    "Prepared statements kept for each connection.",
  ),
  databaseCallsMax: count(
    "LIMIT_DATABASE_CALLS_COUNT",
    1000,
    { min: 1, max: 100_000 },
    "Calls of one database running and waiting; one more is answered DATABASE_BUSY at once.",
  ),
  databaseBytesMax: bytes(
    "LIMIT_DATABASE_BYTES",
    "10GiB",
    { min: "1MiB", max: "256TiB" },
    "Largest database; a statement that would grow it further fails with DATABASE_FULL.",
  ),
  queryWindowChunks: count(
    "LIMIT_QUERY_WINDOW_CHUNKS_COUNT",
    4,
    { min: 1, max: 64 },
    "Chunks of a Query that are under way to a reader at one time.",
  ),
  valueBytesMax: bytes("LIMIT_VALUE_BYTES", "4MiB", { min: "1KiB", max: "1GiB" }, "One string, blob or row in SQLite."),
  sqlBytesMax: bytes("LIMIT_SQL_BYTES", "1MiB", { min: "1KiB", max: "16MiB" }, "Text of one statement."),
  columnCountMax: count(
    "LIMIT_COLUMN_COUNT",
    500,
    { min: 1, max: 32_767 },
    "Columns of a table, an index, a view, a result; terms of SET, GROUP BY and ORDER BY.",
  ),
  expressionDepthMax: count("LIMIT_EXPRESSION_DEPTH_COUNT", 200, { min: 10, max: 1000 }, "Depth of an expression."),
  compoundSelectCountMax: count(
    "LIMIT_COMPOUND_SELECT_COUNT",
    100,
    { min: 1, max: 500 },
    "SELECTs joined by UNION, INTERSECT or EXCEPT.",
  ),
  vdbeOpCountMax: count(
    "LIMIT_VDBE_OP_COUNT",
    250_000,
    { min: 1000, max: 250_000_000 },
    "Instructions that a statement compiles to.",
  ),
  functionArgumentCountMax: count(
    "LIMIT_FUNCTION_ARGUMENT_COUNT",
    127,
    { min: 1, max: 1000 },
    "Arguments of an SQL function.",
  ),
  likePatternBytesMax: bytes(
    "LIMIT_LIKE_PATTERN_BYTES",
    "1000",
    { min: "10", max: "50000" },
    "Pattern of LIKE and GLOB.",
  ),
  parameterCountMax: count(
    "LIMIT_PARAMETER_COUNT",
    32_766,
    { min: 1, max: 32_766 },
    "Highest number of a parameter in a statement.",
  ),
  triggerDepthMax: count("LIMIT_TRIGGER_DEPTH_COUNT", 32, { min: 1, max: 1000 }, "Triggers that fire one another."),
  requestRecordMs: seconds(
    "SETTINGS_REQUEST_RECORD_SECONDS",
    86_400,
    { min: 60, max: 2_592_000 },
    "How long a request_id is remembered.",
  ),
  requestRecordCountMax: count(
    "LIMIT_REQUEST_RECORD_COUNT",
    100_000,
    { min: 100, max: 10_000_000 },
    "Request ids remembered for each database; the oldest go first.",
  ),
};

/** Of calls and of where databases live. */
export const callLimits = {
  statementTimeoutMs: seconds(
    "SETTINGS_STATEMENT_TIMEOUT_SECONDS",
    30,
    { min: 0.01, max: 86_400 },
    "How long a statement may run when the client sets no deadline; of a Query, the time that SQLite spends on it.",
  ),
  statementTimeoutMsMax: seconds(
    "SETTINGS_STATEMENT_TIMEOUT_MAX_SECONDS",
    300,
    { min: 0.01, max: 86_400 },
    "How long a statement may run whatever the client's deadline, and how long a Query may be read.",
  ),
  resultBytesMax: bytes(
    "LIMIT_RESULT_BYTES",
    "2MiB",
    { min: "1KiB", max: "64MiB" },
    "Largest unary result; larger ones fail with RESULT_TOO_LARGE and belong to Query.",
  ),
  chunkRowsMax: count("LIMIT_QUERY_CHUNK_ROWS_COUNT", 1000, { min: 1, max: 100_000 }, "Rows of one Query message."),
  chunkBytesMax: bytes("LIMIT_QUERY_CHUNK_BYTES", "64KiB", { min: "1KiB", max: "1MiB" }, "Bytes of one Query message."),
  batchStepCountMax: count("LIMIT_BATCH_STEP_COUNT", 1000, { min: 1, max: 100_000 }, "Statements of one ExecuteBatch."),
};

/** Of the engine: transactions, flushes, checkpoints, the catalog. */
export const engineLimits = {
  openDatabaseCountMax: count(
    "LIMIT_OPEN_DATABASE_COUNT",
    20_000,
    { min: 16, max: 10_000_000 },
    "Databases whose handles are kept in memory; one in use is never dropped.",
  ),
  pageBytes: bytes(
    "SETTINGS_PAGE_BYTES",
    "4KiB",
    { min: "512", max: "64KiB" },
    "Page size of new databases: a power of two.",
  ),
  transactionIdleMsMax: seconds(
    "SETTINGS_TRANSACTION_IDLE_SECONDS",
    5,
    { min: 0.05, max: 3600 },
    "How long a transaction may wait for its next command before it is rolled back.",
  ),
  transactionTotalMsMax: seconds(
    "SETTINGS_TRANSACTION_TOTAL_SECONDS",
    30,
    { min: 0.05, max: 86_400 },
    "How long a transaction may last before it is rolled back.",
  ),
  positionWaitMsMax: seconds(
    "SETTINGS_POSITION_WAIT_SECONDS",
    5,
    { min: 0, max: 300 },
    "How long a read waits for its min_position.",
  ),
  positionWaitCountMax: count(
    "LIMIT_POSITION_WAIT_COUNT",
    256,
    { min: 1, max: 100_000 },
    "Calls of one database that may wait for a min_position.",
  ),
  flushConcurrencyMax: count(
    "SETTINGS_FLUSH_CONCURRENCY_COUNT",
    16,
    { min: 1, max: 1024 },
    "Flushes of write-ahead logs under way at one time; UV_THREADPOOL_SIZE bounds them too.",
  ),
  flushDescriptorCountMax: count(
    "LIMIT_FLUSH_DESCRIPTOR_COUNT",
    512,
    { min: 1, max: 100_000 },
    "Descriptors of write-ahead logs held open for flushing.",
  ),
  flushDescriptorIdleMs: seconds(
    "SETTINGS_FLUSH_DESCRIPTOR_IDLE_SECONDS",
    10,
    { min: 0.1, max: 3600 },
    "A descriptor that nobody needed for this long is closed.",
  ),
  checkpointFrames: count(
    "SETTINGS_CHECKPOINT_FRAMES_COUNT",
    1000,
    { min: 10, max: 1_000_000 },
    "Frames in a database's write-ahead log from which it is checkpointed.",
  ),
  checkpointPauseFrames: count(
    "SETTINGS_CHECKPOINT_PAUSE_FRAMES_COUNT",
    4000,
    { min: 10, max: 4_000_000 },
    "Frames from which writes pause for a moment so that the write-ahead log can start over.",
  ),
  checkpointPauseMsMax: seconds(
    "SETTINGS_CHECKPOINT_PAUSE_SECONDS",
    0.05,
    { min: 0.001, max: 5 },
    "Longest such pause.",
  ),
  checkpointConcurrencyMax: count(
    "SETTINGS_CHECKPOINT_CONCURRENCY_COUNT",
    4,
    { min: 1, max: 256 },
    "Checkpoints under way at one time, over all databases.",
  ),
  checkpointIdleMs: seconds(
    "SETTINGS_CHECKPOINT_IDLE_SECONDS",
    5,
    { min: 0.1, max: 3600 },
    "Without a write for this long, a write-ahead log above the bound is emptied.",
  ),
  walFramesMax: count(
    "LIMIT_WAL_FRAMES_COUNT",
    262_144,
    { min: 1000, max: 16_777_216 },
    "Frames in a write-ahead log from which writes are refused: a long read keeps it from starting over.",
  ),
  readFramesMax: count(
    "LIMIT_READ_FRAMES_COUNT",
    65_536,
    { min: 1000, max: 16_777_216 },
    "Frames in a write-ahead log from which queries and reading transactions that keep it from starting over are ended.",
  ),
  redoFileBytes: bytes(
    "SETTINGS_REDO_FILE_BYTES",
    "16MiB",
    { min: "1MiB", max: "1GiB" },
    "Size of each of the two files of the redo log, which is made when several databases are flushed at one time; files that are there keep theirs.",
  ),
  batchBytesMax: bytes(
    "SETTINGS_BATCH_BYTES",
    "64MiB",
    { min: "1MiB", max: "1GiB" },
    "Size of a file of the log from which the next commits go into a new one.",
  ),
  sealConcurrencyMax: count(
    "SETTINGS_SEAL_CONCURRENCY_COUNT",
    16,
    { min: 1, max: 256 },
    "Files of the log written at one time, over all databases.",
  ),
  labelCountMax: count("LIMIT_LABEL_COUNT", 64, { min: 0, max: 1024 }, "Labels of a database."),
  filterBytesMax: bytes("LIMIT_FILTER_BYTES", "4KiB", { min: "16", max: "64KiB" }, "Filter of a list."),
  filterTermCountMax: count("LIMIT_FILTER_TERM_COUNT", 32, { min: 1, max: 256 }, "Terms of such a filter."),
  operationRunningCountMax: count(
    "LIMIT_OPERATION_RUNNING_COUNT",
    1000,
    { min: 1, max: 100_000 },
    "Operations that run or wait for their turn at one time; beyond it new ones are refused.",
  ),
  operationCountMax: count(
    "LIMIT_OPERATION_COUNT",
    10_000,
    { min: 100, max: 1_000_000 },
    "Operations remembered; the oldest that have ended go first.",
  ),
  operationRecordMs: seconds(
    "SETTINGS_OPERATION_RECORD_SECONDS",
    86_400,
    { min: 60, max: 31_536_000 },
    "How long an operation that has ended is remembered.",
  ),
  operationWatchCountMax: count(
    "LIMIT_OPERATION_WATCH_COUNT",
    1000,
    { min: 1, max: 100_000 },
    "Calls of WatchOperation at one time.",
  ),
  listScanCountMax: count(
    "LIMIT_LIST_SCAN_COUNT",
    100_000,
    { min: 1000, max: 100_000_000 },
    "Databases looked at for one page of ListDatabases; a page may come back short, with a token to go on.",
  ),
  createRecordMs: seconds(
    "SETTINGS_CREATE_RECORD_SECONDS",
    86_400,
    { min: 60, max: 2_592_000 },
    "How long a repeated CreateDatabase with the same request_id gets the first answer.",
  ),
  deleteGraceMs: seconds(
    "SETTINGS_DELETE_GRACE_SECONDS",
    5,
    { min: 0, max: 600 },
    "How long DeleteDatabase waits for running calls before it ends them.",
  ),
  closeGraceMs: seconds(
    "SETTINGS_CLOSE_GRACE_SECONDS",
    10,
    { min: 0, max: 600 },
    "How long the end of the server waits for running statements before it ends them.",
  ),
  tidyMs: seconds(
    "SETTINGS_TIDY_SECONDS",
    1,
    { min: 0.05, max: 60 },
    "Pause between two rounds of housekeeping: access times, idle connections, idle checkpoints.",
  ),
};
