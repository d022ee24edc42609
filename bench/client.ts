/** A client for everything that is not measured, or measured call by call: typed messages on one connection. */
import { type ClientHttp2Session, connect } from "node:http2";
import type { DescMessage } from "@bufbuild/protobuf";
import {
  create,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Durability, Stage } from "../gen/persisto/v1/database_pb.js";
import { DatabaseService } from "../gen/persisto/v1/database_service_pb.js";
import { StageService } from "../gen/persisto/v1/stage_service_pb.js";
import { callOn, grpcFrame } from "./requests.ts";

const moveWaitSeconds = 120n;

export class Client {
  readonly #session: ClientHttp2Session;

  constructor(port: number) {
    this.#session = connect(`http://127.0.0.1:${port}`, { settings: { initialWindowSize: 1 << 20 } });
    // Every call that is open is told; a client that waits for nothing needs not to know.
    this.#session.on("error", () => undefined);
  }

  close(): void {
    this.#session.destroy();
  }

  /** Rejects when the status is not OK. */
  async call<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    message: MessageInitShape<Input>,
  ): Promise<MessageShape<Output>> {
    const path = `/${method.parent.typeName}/${method.name}`;
    const frame = grpcFrame(toBinary(method.input, create(method.input, message)));
    const [answer = Buffer.alloc(0)] = await callOn(this.#session, path, frame);
    return fromBinary(method.output, answer);
  }

  async createDatabase(database: string): Promise<void> {
    await this.call(DatabaseService.method.createDatabase, { database });
  }

  async script(database: string, script: string): Promise<void> {
    await this.call(DatabaseService.method.executeScript, { database, script });
  }

  async execute(database: string, sql: string, durability = Durability.UNSPECIFIED) {
    return this.call(DatabaseService.method.execute, { database, statement: { sql }, durability });
  }

  async stageOf(database: string): Promise<Stage> {
    const { databaseStage } = await this.call(StageService.method.getDatabaseStage, { database });
    return databaseStage?.stage ?? Stage.UNSPECIFIED;
  }

  /** Resolves at the end of the move. */
  async move(direction: "promote" | "demote", database: string, targetStage: Stage): Promise<void> {
    const { promoteDatabase, demoteDatabase } = StageService.method;
    const message = { database, targetStage, wait: { seconds: moveWaitSeconds } };
    const { operation } =
      direction === "promote" ? await this.call(promoteDatabase, message) : await this.call(demoteDatabase, message);
    if (operation?.error !== undefined) throw new Error(`${direction} of ${database}: ${operation.error.message}`);
    if (operation?.done !== true) throw new Error(`${direction} of ${database} does not end`);
    const stage = await this.stageOf(database);
    if (stage !== targetStage) throw new Error(`${direction} of ${database}: it is on stage ${stage}`);
  }

  /** Resolves when everything committed is on the remote stage. */
  async sync(database: string): Promise<void> {
    const message = { database, wait: { seconds: moveWaitSeconds } };
    const { operation } = await this.call(StageService.method.syncDatabase, message);
    if (operation !== undefined && !operation.done) throw new Error(`${database} is not synced`);
  }
}

/** Carries databases to the remote stage, so that all answers from now on say that it has them: they are of one length. */
export async function carry(port: number, databases: readonly string[]): Promise<void> {
  const client = new Client(port);
  try {
    for (const database of databases) await client.sync(database);
  } finally {
    client.close();
  }
}

/** Runs `work` for every item, some at a time. */
export async function each<Item>(
  items: readonly Item[],
  atATime: number,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  let next = 0;
  const workers = Array.from({ length: Math.min(atATime, items.length) }, async () => {
    for (let at = next++; at < items.length; at = next++) await work(items[at] as Item);
  });
  await Promise.all(workers);
}
