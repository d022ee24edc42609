/** Transact: a transaction that lives as long as its stream. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type BeginTransaction,
  ResultSetSchema,
  type Savepoint,
  TransactionMode,
  type TransactRequest,
  TransactResponseSchema,
} from "../../gen/persisto/v1/database_service_pb.js";
import { StatementSchema } from "../../gen/persisto/v1/value_pb.js";
import type { EngineAnswer, EngineTransaction } from "../engine/engine.ts";
import { Failure, fieldInvalid } from "../failure/failure.ts";
import { CallCancelled, type CallOptions } from "../sqlite/executor.ts";
import type { RawCall } from "../transport/transport.ts";
import { failureToOperationError } from "./errors.ts";
import { checkDatabaseId, checkDurability, checkMinPosition, checkRowFormat, required } from "./fields.ts";
import { durationMs, positionMessage } from "./messages.ts";
import { callOptions, type StatementCall, type StatementServices } from "./statements.ts";
import { encodeBytesField, wireBytes } from "./wire.ts";

export interface TransactServices extends StatementServices {
  /** How long an ended transaction's stream stays open for the client to close it. */
  readonly lingerMs: number;
}

type Response = MessageInitShape<typeof TransactResponseSchema>;
/** `rows`: the bytes of a ResultSet. */
type Outcome = NonNullable<Response["outcome"]> | { readonly case: "rows"; readonly value: Uint8Array };

/**
 * Serves one stream. Commands run one after another as the client's flow control lets them in. A failed command is an
 * answer as long as the transaction is open; everything else ends the stream, and with it the transaction.
 */
export async function* transact(
  services: TransactServices,
  requests: AsyncIterable<TransactRequest>,
  call: StatementCall & Pick<RawCall, "note" | "requestHeader">,
): AsyncGenerator<Response> {
  const isJson = /\bjson\b/.test(call.requestHeader("content-type") ?? "");
  const inbox = new Inbox(requests);
  const forgetCancel = call.onCancel(() => inbox.stop(new CallCancelled()));
  let transaction: EngineTransaction | undefined;
  try {
    if (call.cancelled) {
      throw new CallCancelled();
    }
    const first = await inbox.next();
    if (first === undefined) {
      return;
    }
    if (first.command.case !== "begin") {
      throw notOpen(first);
    }
    const columns = checkRowFormat(first.command.value.rowFormat);
    const options = () => callOptions(call, services.clock, services.limits, columns);
    transaction = await begin(services, first.command.value, options(), call);
    transaction.onExpired((failure) => inbox.stop(failure));
    yield response(first.commandId, begun(transaction), isJson);

    for (;;) {
      const request = await inbox.next();
      if (request === undefined) {
        return;
      }
      const outcome = await answer(transaction, request, options(), inbox);
      yield response(request.commandId, outcome, isJson);
      if (outcome.case === "ended") {
        break;
      }
    }
    await refuseMore(services, inbox);
  } finally {
    forgetCancel();
    if (transaction?.isOpen) {
      await transaction.rollback();
    }
  }
}

/** Rows are decoded for JSON alone. In binary they are written as a field that the message does not know: as they are. */
function response(commandId: bigint, outcome: Outcome, isJson: boolean): Response {
  if (outcome.case !== "rows") {
    return { commandId, outcome };
  }
  if (isJson) {
    return { commandId, outcome: { case: "result", value: fromBinary(ResultSetSchema, outcome.value) } };
  }
  const message = create(TransactResponseSchema, { commandId });
  const { number } = TransactResponseSchema.field.result;
  // The tag is the serializer's to write.
  message.$unknown = [{ no: number, wireType: wireBytes, data: encodeBytesField(number, outcome.value).subarray(1) }];
  return message;
}

async function begin(
  { engine }: TransactServices,
  command: BeginTransaction,
  options: CallOptions,
  call: Pick<RawCall, "note">,
): Promise<EngineTransaction> {
  checkDatabaseId(command.database, "begin.database");
  call.note("database", command.database);
  if (command.mode !== TransactionMode.READ_ONLY && command.mode !== TransactionMode.READ_WRITE) {
    throw fieldInvalid("begin.mode", "must be TRANSACTION_MODE_READ_ONLY or TRANSACTION_MODE_READ_WRITE");
  }
  const idleTimeoutMs = command.idleTimeout === undefined ? 0 : durationMs(command.idleTimeout);
  if (idleTimeoutMs < 0) {
    throw fieldInvalid("begin.idle_timeout", "must not be negative");
  }
  const minPosition = checkMinPosition(command.minPosition, "begin.min_position");
  const isReadWrite = command.mode === TransactionMode.READ_WRITE;
  return engine.begin(command.database, isReadWrite, idleTimeoutMs, minPosition, options);
}

/** The outcome of a command; throws what ends the stream. */
async function answer(
  transaction: EngineTransaction,
  request: TransactRequest,
  options: CallOptions,
  inbox: Inbox,
): Promise<Outcome> {
  try {
    return await run(transaction, request, options);
  } catch (error) {
    if (inbox.stopReason !== undefined) {
      throw inbox.stopReason;
    }
    if (error instanceof Failure && error.reason !== "INTERNAL" && !isProtocolFailure(error) && transaction.isOpen) {
      return { case: "statementError", value: failureToOperationError(error) };
    }
    throw error;
  }
}

/** Commands that break the rules of the stream; the statements in them may be as wrong as they like. */
function isProtocolFailure({ reason }: Failure): boolean {
  return reason === "FIELD_INVALID" || reason === "TRANSACTION_NOT_OPEN";
}

async function run(
  transaction: EngineTransaction,
  { command }: TransactRequest,
  options: CallOptions,
): Promise<Outcome> {
  switch (command.case) {
    case "execute": {
      const { body } = await transaction.execute(toBinary(StatementSchema, command.value), options);
      return { case: "rows", value: body };
    }
    case "savepoint":
      await transaction.savepoint(savepointId(command.value, "savepoint"), options);
      return emptyResult;
    case "rollbackTo":
      await transaction.rollbackTo(savepointId(command.value, "rollback_to"), options);
      return emptyResult;
    case "commit": {
      const durability = checkDurability(command.value.durability, "commit.durability");
      return ended(true, await transaction.commit(durability, options));
    }
    case "rollback":
      return ended(false, await transaction.rollback());
    case "begin":
      throw fieldInvalid("begin", "must come once, as the first command");
    case undefined:
      throw required("command");
  }
}

/** What savepoints answer: they have nothing to tell. */
const emptyResult: Outcome = { case: "result", value: { data: { case: "rowBatch", value: {} } } };

function savepointId({ savepointId: id }: Savepoint, field: string): string {
  if (id === "") {
    throw required(`${field}.savepoint_id`);
  }
  if (id.length > 128 || id.includes("\0")) {
    throw fieldInvalid(`${field}.savepoint_id`, "must be at most 128 characters without NUL");
  }
  return id;
}

function begun(transaction: EngineTransaction): Outcome {
  return {
    case: "begun",
    value: {
      snapshot: positionMessage(transaction.snapshot),
      expireTime: timestampFromMs(transaction.expireTimeMs),
    },
  };
}

function ended(committed: boolean, { position, durablePosition }: EngineAnswer): Outcome {
  return {
    case: "ended",
    value: {
      committed,
      position: positionMessage(position),
      ...(durablePosition === undefined ? {} : { durablePosition: positionMessage(durablePosition) }),
    },
  };
}

/** Pipelined commands after the end are told so; a client that leaves its stream open is left after a while. */
async function refuseMore({ clock, lingerMs }: TransactServices, inbox: Inbox): Promise<void> {
  const stopLingering = clock.after(lingerMs, () => inbox.stop(lingered));
  try {
    const request = await inbox.next();
    if (request !== undefined) {
      throw notOpen(request);
    }
  } catch (error) {
    if (error !== lingered) {
      throw error;
    }
  } finally {
    stopLingering();
  }
}

const lingered = new Error("the client has not closed its stream");

const commandNames: Readonly<Record<string, string>> = { rollbackTo: "rollback_to" };

function notOpen({ command }: TransactRequest): Failure {
  if (command.case === undefined) {
    return required("command");
  }
  return new Failure("TRANSACTION_NOT_OPEN", { command: commandNames[command.case] ?? command.case });
}

/** The client's commands, one at a time; waiting for one ends as soon as there is a reason to stop. */
class Inbox {
  readonly #iterator: AsyncIterator<TransactRequest>;
  #reject: ((reason: Error) => void) | undefined;
  #stopReason: Error | undefined;

  constructor(requests: AsyncIterable<TransactRequest>) {
    this.#iterator = requests[Symbol.asyncIterator]();
  }

  get stopReason(): Error | undefined {
    return this.#stopReason;
  }

  stop(reason: Error): void {
    this.#stopReason ??= reason;
    this.#reject?.(this.#stopReason);
  }

  /** Undefined when the client has sent all. */
  next(): Promise<TransactRequest | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#stopReason !== undefined) {
        reject(this.#stopReason);
        return;
      }
      this.#reject = reject;
      this.#iterator.next().then(({ done, value }) => resolve(done === true ? undefined : value), reject);
    });
  }
}
