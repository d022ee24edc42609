/** OperationService: following work that outlives the call that began it. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { OperationKind, type OperationSchema, type OperationService } from "../../gen/persisto/v1/operation_pb.js";
import type { Engine, OperationInfo, OperationKindName } from "../engine/engine.ts";
import { fieldInvalid } from "../failure/failure.ts";
import { callOf } from "./calls.ts";
import { failureToOperationError } from "./errors.ts";
import { required } from "./fields.ts";

export function operationMethods(engine: Engine): ServiceImpl<typeof OperationService> {
  return {
    async getOperation(request, context) {
      const id = checkOperation(request.operation, context);
      return { operation: operationMessage(await engine.getOperation(id)) };
    },

    async listOperations(request) {
      if (request.pageSize < 0) {
        throw fieldInvalid("page_size", "must not be negative");
      }
      const { pageSize, pageToken, filter } = request;
      const { operations, nextPageToken } = await engine.listOperations({ pageSize, pageToken, filter });
      return { operations: operations.map(operationMessage), nextPageToken };
    },

    async *watchOperation(request, context) {
      const id = checkOperation(request.operation, context);
      for await (const info of engine.watchOperation(id, callOf(context))) {
        yield { operation: operationMessage(info) };
      }
    },

    async cancelOperation(request, context) {
      await engine.cancelOperation(checkOperation(request.operation, context));
      return {};
    },
  };
}

const kinds: Readonly<Record<OperationKindName, OperationKind>> = {
  promote: OperationKind.PROMOTE,
  demote: OperationKind.DEMOTE,
  sync: OperationKind.SYNC,
  restore: OperationKind.RESTORE,
  fork: OperationKind.FORK,
};

export function operationMessage(info: OperationInfo): MessageInitShape<typeof OperationSchema> {
  return {
    id: info.id,
    database: info.database,
    kind: kinds[info.kind],
    bytesDone: BigInt(info.bytesDone),
    bytesTotal: BigInt(info.bytesTotal),
    createTime: timestampFromMs(info.createTimeMs),
    ...(info.endTimeMs === undefined ? {} : { endTime: timestampFromMs(info.endTimeMs) }),
    done: info.done,
    ...(info.error === undefined ? {} : { error: failureToOperationError(info.error) }),
  };
}

const operationPattern = /^[0-9a-f]{1,64}$/;

function checkOperation(id: string, context: HandlerContext): string {
  if (id === "") {
    throw required("operation");
  }
  if (!operationPattern.test(id)) {
    throw fieldInvalid("operation", "must be the id of an operation, as an earlier answer gave it");
  }
  callOf(context).note("operation", id);
  return id;
}
