/** Stages as they stand: one, the local disk. */
import type { ServiceImpl } from "@connectrpc/connect";
import { Stage } from "../../gen/persisto/v1/database_pb.js";
import type { StageService } from "../../gen/persisto/v1/stage_service_pb.js";
import type { Engine } from "../engine/engine.ts";
import { noteDatabase } from "./calls.ts";
import { checkDatabaseId } from "./fields.ts";
import { positionMessage, stageNumbers } from "./messages.ts";

export interface StageServices {
  readonly engine: Engine;
  readonly localStageName: string;
  /** Of the file system that holds the local stage. */
  readonly localCapacityBytes: () => Promise<bigint>;
}

type StageMethods = Pick<ServiceImpl<typeof StageService>, "listStages" | "getDatabaseStage">;

export function stageMethods({ engine, localStageName, localCapacityBytes }: StageServices): StageMethods {
  return {
    async listStages() {
      const { databases, databaseBytes } = engine.stats();
      return {
        stages: [
          {
            stage: Stage.LOCAL,
            displayName: localStageName,
            capacityBytes: await localCapacityBytes(),
            usedBytes: BigInt(databaseBytes),
            databaseCount: BigInt(databases),
            healthy: true,
          },
        ],
      };
    },

    async getDatabaseStage(request, context) {
      checkDatabaseId(request.database);
      noteDatabase(context, request.database);
      const { id, stage, sizeBytes, position } = await engine.getDatabase(request.database);
      return {
        databaseStage: {
          database: id,
          stage: stageNumbers[stage],
          residencies: [{ stage: stageNumbers[stage], residentBytes: sizeBytes, position: positionMessage(position) }],
          placementReason: `the ${stage} stage is the only one that this server has`,
        },
      };
    },
  };
}
