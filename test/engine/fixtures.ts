/** Limits and bytes that tests and the programs they start share. */
import { create, toBinary } from "@bufbuild/protobuf";
import { StatementSchema } from "../../gen/persisto/v1/value_pb.js";
import type { EngineLimits } from "../../src/engine/options.ts";
import type { ExecutorLimits } from "../../src/sqlite/executor.ts";

export const testLimits: EngineLimits = {
  openDatabaseCountMax: 1000,
  pageBytes: 4096,
  transactionIdleMsMax: 5000,
  transactionTotalMsMax: 30_000,
  positionWaitMsMax: 5000,
  positionWaitCountMax: 16,
  flushConcurrencyMax: 16,
  flushDescriptorCountMax: 64,
  flushDescriptorIdleMs: 10_000,
  checkpointFrames: 1000,
  checkpointPauseFrames: 4000,
  checkpointPauseMsMax: 50,
  checkpointConcurrencyMax: 4,
  checkpointIdleMs: 5000,
  walFramesMax: 262_144,
  readFramesMax: 65_536,
  redoFileBytes: 1024 * 1024,
  sealConcurrencyMax: 4,
  batchBytesMax: 64 * 1024 * 1024,
  labelCountMax: 64,
  filterBytesMax: 4096,
  filterTermCountMax: 32,
  operationRunningCountMax: 16,
  operationCountMax: 100,
  operationRecordMs: 86_400_000,
  operationWatchCountMax: 16,
  listScanCountMax: 100_000,
  createRecordMs: 86_400_000,
  deleteGraceMs: 500,
  closeGraceMs: 1000,
  tidyMs: 1000,
};

export const executorLimits: ExecutorLimits = {
  executorCountMin: 1,
  executorCountMax: 2,
  executorStallMs: 25,
  executorGraceMs: 500,
  executorMemoryBytesMax: 512 * 1024 * 1024,
  connectionCountMax: 64,
  connectionIdleMs: 60_000,
  statementCacheCount: 8,
  databaseCallsMax: 1000,
  databaseBytesMax: 1024 * 1024 * 1024,
  queryWindowChunks: 4,
  valueBytesMax: 4 * 1024 * 1024,
  sqlBytesMax: 1024 * 1024,
  columnCountMax: 500,
  expressionDepthMax: 200,
  compoundSelectCountMax: 100,
  vdbeOpCountMax: 250_000,
  functionArgumentCountMax: 127,
  likePatternBytesMax: 1000,
  parameterCountMax: 32_766,
  triggerDepthMax: 32,
  requestRecordMs: 86_400_000,
  requestRecordCountMax: 1000,
};

export function statement(sql: string): Uint8Array {
  return toBinary(StatementSchema, create(StatementSchema, { sql }));
}
