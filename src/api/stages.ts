/** StageService: where databases live, and moving them. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { Durability } from "../../gen/persisto/v1/database_pb.js";
import type {
  DatabaseStageSchema,
  DemoteDatabaseRequest,
  Pin,
  PromoteDatabaseRequest,
  StageService,
  StageStatusSchema,
} from "../../gen/persisto/v1/stage_service_pb.js";
import type { DatabaseStageInfo, Engine, MoveInput, PinInfo, StageInfo, SyncInput } from "../engine/engine.ts";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import { callOf, noteDatabase } from "./calls.ts";
import { checkDatabaseId, checkMinPosition, checkStage, checkTime, required } from "./fields.ts";
import { positionMessage, stageNumbers } from "./messages.ts";
import { operationMessage } from "./operations.ts";
import { callWait, type WaitServices } from "./waits.ts";

export interface StageServices extends WaitServices {
  readonly engine: Engine;
}

export function stageMethods(services: StageServices): ServiceImpl<typeof StageService> {
  const { engine, clock } = services;
  return {
    async listStages() {
      return { stages: (await engine.listStages()).map(stageMessage) };
    },

    async getDatabaseStage(request, context) {
      checkDatabase(request, context);
      return { databaseStage: databaseStageMessage(await engine.getDatabaseStage(request.database)) };
    },

    async promoteDatabase(request, context) {
      const operation = await engine.promote(moveInput(services, request, context, "PromoteDatabase"));
      return { operation: operationMessage(operation) };
    },

    async demoteDatabase(request, context) {
      const operation = await engine.demote(moveInput(services, request, context, "DemoteDatabase"));
      return { operation: operationMessage(operation) };
    },

    async syncDatabase(request, context) {
      checkDatabase(request, context);
      const { operation, durablePosition } = await engine.sync({
        id: request.database,
        upTo: checkMinPosition(request.upTo, "up_to"),
        durability: checkSyncDurability(request.durability),
        wait: callWait(services, request.wait, callOf(context), services.limits.statementTimeoutMs),
      });
      return {
        operation: operationMessage(operation),
        ...(durablePosition === undefined ? {} : { durablePosition: positionMessage(durablePosition) }),
      };
    },

    async pinDatabase(request, context) {
      checkDatabase(request, context);
      const pin = checkPin(request.pin, clock.wallMs());
      return { databaseStage: databaseStageMessage(await engine.pin(request.database, pin)) };
    },

    async unpinDatabase(request, context) {
      checkDatabase(request, context);
      return { databaseStage: databaseStageMessage(await engine.unpin(request.database)) };
    },
  };
}

function checkDatabase({ database }: { readonly database: string }, context: HandlerContext): void {
  checkDatabaseId(database);
  noteDatabase(context, database);
}

function moveInput(
  services: StageServices,
  request: PromoteDatabaseRequest | DemoteDatabaseRequest,
  context: HandlerContext,
  method: string,
): MoveInput {
  checkDatabase(request, context);
  const target = checkStage(request.targetStage, "target_stage");
  const wait = callWait(services, request.wait, callOf(context));
  if (request.parts.length > 0) {
    throw new Failure("NOT_IMPLEMENTED", { method: `persisto.v1.StageService.${method} with parts` });
  }
  return { id: request.database, target, wait };
}

/** What is only committed needs no syncing. */
function checkSyncDurability(durability: Durability): SyncInput["durability"] {
  switch (durability) {
    case Durability.UNSPECIFIED:
    case Durability.REMOTE:
      return "remote";
    case Durability.LOCAL:
      return "local";
    default:
      throw fieldInvalid("durability", "must be DURABILITY_LOCAL or DURABILITY_REMOTE");
  }
}

function checkPin(pin: Pin | undefined, nowMs: number): PinInfo {
  if (pin === undefined) {
    throw required("pin");
  }
  const stage = checkStage(pin.stage, "pin.stage");
  if (stage === undefined) {
    throw required("pin.stage");
  }
  const expireTimeMs = pin.expireTime === undefined ? undefined : checkTime(pin.expireTime, "pin.expire_time");
  if (expireTimeMs !== undefined && expireTimeMs <= nowMs) {
    throw fieldInvalid("pin.expire_time", "must lie in the future");
  }
  return { stage, expireTimeMs };
}

function stageMessage(info: StageInfo): MessageInitShape<typeof StageStatusSchema> {
  return {
    stage: stageNumbers[info.stage],
    displayName: info.displayName,
    capacityBytes: info.capacityBytes ?? 0n,
    usedBytes: info.usedBytes,
    databaseCount: info.databaseCount,
    healthy: info.healthy,
  };
}

function databaseStageMessage(info: DatabaseStageInfo): MessageInitShape<typeof DatabaseStageSchema> {
  const { pin } = info;
  return {
    database: info.database,
    stage: stageNumbers[info.stage],
    operation: info.operation ?? "",
    residencies: info.residencies.map(({ stage, residentBytes, position }) => ({
      stage: stageNumbers[stage],
      residentBytes,
      position: positionMessage(position),
    })),
    ...(pin === undefined
      ? {}
      : {
          pin: {
            stage: stageNumbers[pin.stage],
            ...(pin.expireTimeMs === undefined ? {} : { expireTime: timestampFromMs(pin.expireTimeMs) }),
          },
        }),
    placementReason: info.placementReason,
  };
}
