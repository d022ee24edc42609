/** Engine values as messages of persisto.v1. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Duration, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type DatabaseSchema,
  DatabaseState,
  DatabaseView,
  type PositionSchema,
  Stage,
} from "../../gen/persisto/v1/database_pb.js";
import type { DatabaseInfo, DatabaseStateName, Position, StageName } from "../engine/engine.ts";

const states: Readonly<Record<DatabaseStateName, DatabaseState>> = {
  creating: DatabaseState.CREATING,
  ready: DatabaseState.READY,
  read_only: DatabaseState.READ_ONLY,
  deleting: DatabaseState.DELETING,
  faulted: DatabaseState.FAULTED,
};

export const stageNumbers: Readonly<Record<StageName, Stage>> = {
  memory: Stage.MEMORY,
  local: Stage.LOCAL,
  remote: Stage.REMOTE,
};

export type DatabaseInit = MessageInitShape<typeof DatabaseSchema>;

export function databaseMessage(info: DatabaseInfo, view: DatabaseView): DatabaseInit {
  const basic = { id: info.id, state: states[info.state], stage: stageNumbers[info.stage], etag: info.etag };
  if (view === DatabaseView.BASIC) {
    return basic;
  }
  return {
    ...basic,
    sizeBytes: info.sizeBytes,
    position: positionMessage(info.position),
    ...(info.durablePosition === undefined ? {} : { durablePosition: positionMessage(info.durablePosition) }),
    createTime: timestampFromMs(info.createTimeMs),
    lastAccessTime: timestampFromMs(info.lastAccessTimeMs),
    labels: { ...info.labels },
    sqlOptions: { foreignKeys: info.foreignKeys },
  };
}

export function positionMessage({ lineage, sequence }: Position): MessageInitShape<typeof PositionSchema> {
  return { lineage, sequence };
}

/** Whole milliseconds, rounded up. */
export function durationMs({ seconds, nanos }: Pick<Duration, "seconds" | "nanos">): number {
  return Number(seconds) * 1000 + Math.ceil(nanos / 1_000_000);
}
