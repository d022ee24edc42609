/** Transact from the client's side: command by command, or all at once. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { TransactRequestSchema, TransactResponse } from "../../gen/persisto/v1/database_service_pb.js";
import type { ApiClients } from "./api-clients.ts";

type Request = MessageInitShape<typeof TransactRequestSchema>;
export type Command = NonNullable<Request["command"]>;

export interface TransactionClient {
  /** Sends a command and returns its answer. */
  send(command: Command): Promise<TransactResponse>;
  /** Closes the client's side, unless told otherwise, and waits for the server's; rejects with the stream's error. */
  end(options?: { readonly keepOpen?: boolean }): Promise<void>;
  /** Breaks the stream off. */
  abort(): void;
}

export function openTransaction(api: ApiClients): TransactionClient {
  const aborting = new AbortController();
  const outbox = new Outbox<Request>();
  const answers = api.databases.transact(outbox, { signal: aborting.signal })[Symbol.asyncIterator]();
  let commandId = 0n;
  return {
    async send(command) {
      commandId++;
      outbox.push({ commandId, command });
      const { value, done } = await answers.next();
      if (done === true) throw new Error("the stream has ended");
      if (value.commandId !== commandId) throw new Error(`command ${commandId} was answered as ${value.commandId}`);
      return value;
    },
    async end({ keepOpen = false } = {}) {
      if (!keepOpen) outbox.close();
      const { done } = await answers.next();
      outbox.close();
      if (done !== true) throw new Error("an answer to nothing");
    },
    abort: () => aborting.abort(),
  };
}

/** Sends all commands without waiting, closes, and returns all answers. */
export async function pipeline(api: ApiClients, commands: readonly Command[]): Promise<TransactResponse[]> {
  async function* requests(): AsyncGenerator<Request> {
    for (const [index, command] of commands.entries()) {
      yield { commandId: BigInt(index + 1), command };
    }
  }
  const answers: TransactResponse[] = [];
  for await (const answer of api.databases.transact(requests())) {
    answers.push(answer);
  }
  return answers;
}

type Outcome = Exclude<TransactResponse["outcome"], { readonly case: undefined }>;
type OutcomeValues = { readonly [Each in Outcome as Each["case"]]: Each["value"] };

/** The outcome of an answer, which must be of that kind. */
export function outcomeOf<Case extends Outcome["case"]>(
  answer: TransactResponse | undefined,
  kind: Case,
): OutcomeValues[Case] {
  if (answer?.outcome.case !== kind) {
    throw new Error(`the outcome is ${JSON.stringify(answer?.outcome, (_, each) => String(each))}, not ${kind}`);
  }
  return answer.outcome.value as OutcomeValues[Case];
}

/** What is pushed comes out of the iterator. */
class Outbox<T> implements AsyncIterable<T> {
  readonly #waiting: T[] = [];
  #closed = false;
  #wake: () => void = () => undefined;

  push(item: T): void {
    this.#waiting.push(item);
    this.#wake();
  }

  close(): void {
    this.#closed = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for (;;) {
      const item = this.#waiting.shift();
      if (item !== undefined) {
        yield item;
      } else if (this.#closed) {
        return;
      } else {
        await new Promise<void>((wake) => {
          this.#wake = wake;
        });
      }
    }
  }
}
