/**
 * An executor: takes calls as frames, runs them on its connections one after another, answers as frames. The same code is
 * the child process and the in-process implementation.
 */
import type Database from "better-sqlite3";
import type { Clock } from "../clock.ts";
import { Answers } from "./answers.ts";
import { Autocommit } from "./autocommit.ts";
import { Connections } from "./connections.ts";
import { Execution, interruptedBefore } from "./execution.ts";
import type { DatabaseFile, ExecutorLimits } from "./executor.ts";
import { noteOfError } from "./failure-notes.ts";
import { FrameReader, type WriteParts } from "./frames.ts";
import type { Native } from "./native.ts";
import { Pins } from "./pins.ts";
import {
  ANSWER_DONE,
  ANSWER_FAILED,
  ANSWER_HELLO,
  ANSWER_REVOKED,
  ANSWER_STATUS,
  CONTROL_CLOSE_QUERY,
  CONTROL_CREDIT,
  CONTROL_DEFINE,
  CONTROL_RELEASE,
  CONTROL_TIDY,
  DONE_OPEN,
  FRAME_BYTES_MAX,
  type Hello,
  isFrom,
  OP_BATCH,
  OP_BEGIN,
  OP_CHECKPOINT,
  OP_CLOSE,
  OP_COMMIT,
  OP_CREATE,
  OP_EXECUTE,
  OP_INSPECT,
  OP_PIN,
  OP_QUERY,
  OP_READ,
  OP_ROLLBACK,
  OP_ROLLBACK_TO,
  OP_SAVEPOINT,
  OP_SCRIPT,
  OP_TRANSACTION_EXECUTE,
  OP_UNPIN,
  WORD_BEGUN,
  WORD_CANCEL,
  WORD_REVOKED,
  WORD_RUNNING,
  WORDS_BYTES,
} from "./protocol.ts";
import { Queries } from "./queries.ts";
import { Transactions } from "./transactions.ts";
import { Upkeep } from "./upkeep.ts";

/** Answers gathered before they are sent while more calls wait. */
const CALLS_A_WRITE = 16;

export interface HostOptions {
  readonly Database: typeof Database;
  readonly native: Native;
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  /** Memory shared with the server: PAGE_BYTES; see protocol.ts and DESIGN.md. */
  readonly page: ArrayBufferLike;
  readonly write: WriteParts;
}

/** Whose buffer the native library has: a process may have several hosts. */
let lender: Host | undefined;

export class Host {
  readonly #words: Int32Array;
  readonly #answers: Answers;
  readonly #execution: Execution;
  readonly #autocommit: Autocommit;
  readonly #transactions: Transactions;
  readonly #queries: Queries;
  readonly #upkeep: Upkeep;
  readonly #pins: Pins;
  readonly #reader = new FrameReader(FRAME_BYTES_MAX, (buffer, start, end) => this.#frame(buffer, start, end));
  #unsent = 0;
  #closed = false;

  constructor(options: HostOptions) {
    const { native, limits, clock, page } = options;
    const words = new Int32Array(page, 0, WORDS_BYTES / Int32Array.BYTES_PER_ELEMENT);
    this.#words = words;
    this.#answers = new Answers(page, options.write);
    const connections = new Connections(options.Database, native, limits);
    this.#execution = new Execution({ connections, native, limits, clock, answers: this.#answers });
    this.#autocommit = new Autocommit(this.#execution);
    this.#transactions = new Transactions(this.#execution);
    this.#queries = new Queries({
      execution: this.#execution,
      words,
      beforeTurn: () => this.#lend(),
      afterTurn: () => this.#flush(),
    });
    this.#upkeep = new Upkeep(this.#execution, options.Database);
    this.#pins = new Pins(this.#execution);
    native.memoryLimit(limits.executorMemoryBytesMax);
  }

  hello(hello: Hello): void {
    this.#answers.begin();
    this.#answers.append(Buffer.from(JSON.stringify(hello)));
    this.#answers.finish(0, ANSWER_HELLO, 0, 0, undefined);
    this.#answers.flush();
  }

  /** Takes what the server sent; throws when it is no protocol. */
  receive(chunk: Buffer): void {
    this.#lend();
    this.#execution.nowMs = this.#execution.clock.now();
    this.#reader.push(chunk);
    this.#flush();
  }

  /** Ends everything. Open transactions roll back. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#queries.close();
    this.#transactions.close();
    this.#pins.close();
    this.#execution.connections.closeAll();
  }

  /** The native library writes to one buffer a process. */
  #lend(): void {
    if (lender === this) return;
    lender = this;
    this.#execution.native.output(this.#answers.lent);
  }

  #flush(): void {
    this.#unsent = 0;
    this.#answers.flush();
  }

  #frame(bytes: Buffer, start: number, end: number): void {
    const { call, nowMs } = this.#execution;
    call.read(bytes, start, end, nowMs);
    if (call.op >= CONTROL_DEFINE) this.#control();
    else this.#answer();
    call.clear();
  }

  #answer(): void {
    const { call } = this.#execution;
    const words = this.#words;
    // The server stores REVOKED and then reads BEGUN; we store BEGUN and then read REVOKED. One of us sees the other.
    Atomics.store(words, WORD_BEGUN, call.id);
    const revoked = Atomics.load(words, WORD_REVOKED);
    this.#answers.begin();
    if (revoked !== 0 && isFrom(call.id, revoked)) this.#answers.finish(call.id, ANSWER_REVOKED, 0, 0, undefined);
    else {
      Atomics.store(words, WORD_RUNNING, call.id);
      try {
        if (Atomics.load(words, WORD_CANCEL) === call.id) throw interruptedBefore("cancel");
        this.#run();
      } catch (error) {
        this.#fail(error);
      }
      Atomics.store(words, WORD_RUNNING, 0);
    }
    // When the next call runs for long, the server takes them out of the outbox.
    if (++this.#unsent >= CALLS_A_WRITE) this.#flush();
  }

  #run(): void {
    const { op } = this.#execution.call;
    switch (op) {
      case OP_EXECUTE:
        this.#autocommit.execute();
        return;
      case OP_READ:
        this.#autocommit.read();
        return;
      case OP_BATCH:
        this.#autocommit.batch();
        return;
      case OP_SCRIPT:
        this.#autocommit.script();
        return;
      case OP_QUERY:
        this.#queries.open();
        return;
      case OP_BEGIN:
        this.#transactions.begin();
        return;
      case OP_TRANSACTION_EXECUTE:
        this.#transactions.execute();
        return;
      case OP_SAVEPOINT:
        this.#transactions.savepoint("savepoint");
        return;
      case OP_ROLLBACK_TO:
        this.#transactions.savepoint("rollbackTo");
        return;
      case OP_COMMIT:
        this.#transactions.commit();
        return;
      case OP_ROLLBACK:
        this.#transactions.rollback();
        return;
      case OP_CREATE:
        this.#upkeep.create();
        return;
      case OP_CHECKPOINT:
        if (this.#execution.call.target === 0) this.#upkeep.checkpoint();
        else this.#pins.checkpoint();
        return;
      case OP_INSPECT:
        this.#upkeep.inspect();
        return;
      case OP_PIN:
        this.#pins.pin();
        return;
      case OP_UNPIN:
        this.#pins.unpin();
        return;
      case OP_CLOSE:
        this.#closeDatabase();
        return;
      default:
        throw new Error(`unknown call ${op}`);
    }
  }

  #control(): void {
    const { call, connections } = this.#execution;
    switch (call.op) {
      case CONTROL_DEFINE:
        connections.define(call.number, JSON.parse(call.text()) as DatabaseFile);
        return;
      case CONTROL_CREDIT:
        this.#queries.credit(call.target, call.first);
        return;
      case CONTROL_CLOSE_QUERY:
        this.#queries.end(call.target);
        return;
      case CONTROL_TIDY:
        connections.tidy(this.#execution.nowMs);
        this.#status();
        return;
      case CONTROL_RELEASE:
        connections.release(call.number);
        return;
      default:
        throw new Error(`unknown control ${call.op}`);
    }
  }

  #closeDatabase(): void {
    const { number, id } = this.#execution.call;
    this.#queries.close(number);
    this.#transactions.close(number);
    this.#pins.close(number);
    this.#execution.connections.forget(number);
    this.#answers.finish(id, ANSWER_DONE, 0, 0, undefined);
  }

  /** Answers that the call failed, whether a transaction that it belongs to goes on, and whether it did something. */
  #fail(error: unknown): void {
    const { call } = this.#execution;
    const note = noteOfError(error, this.#execution.failureContext());
    let flags = this.#transactions.outlivesFailure() ? DONE_OPEN : 0;
    if (call.op === OP_EXECUTE && note.reason === "CONSTRAINT_VIOLATED") flags |= this.#autocommit.flagsOfFailure();
    this.#answers.begin();
    this.#answers.append(Buffer.from(JSON.stringify(note)));
    this.#answers.finish(call.id, ANSWER_FAILED, flags, 0, undefined);
  }

  #status(): void {
    const status = Buffer.alloc(12);
    status.writeUInt32LE(this.#execution.connections.openCount, 0);
    status.writeBigUInt64LE(BigInt(process.memoryUsage.rss()), 4);
    this.#answers.begin();
    this.#answers.append(status);
    this.#answers.finish(0, ANSWER_STATUS, 0, 0, undefined);
  }
}
