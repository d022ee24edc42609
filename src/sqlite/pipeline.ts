/**
 * One executor as the server sees it: the calls it was sent and has not answered, in order; what was begun, taken back and
 * cancelled (the shared words); the transactions and queries that live in it.
 */
import type { Call } from "./call.ts";
import type { ExecutorLink, OpenLink } from "./executor-link.ts";
import { FairQueue } from "./fair-queue.ts";
import { FRAME_LENGTH_BYTES, FrameWriter } from "./frames.ts";
import type { PoolDatabase } from "./pool-database.ts";
import type { PoolQuery } from "./pool-query.ts";
import type { PoolTransaction } from "./pool-transaction.ts";
import {
  ANSWER_CHUNK,
  ANSWER_DONE,
  ANSWER_FAILED,
  ANSWER_FLAGS,
  ANSWER_HEADER_BYTES,
  ANSWER_HELLO,
  ANSWER_ID,
  ANSWER_KIND,
  ANSWER_QUERY_END,
  ANSWER_QUERY_FAILED,
  ANSWER_REVOKED,
  ANSWER_STATUS,
  ANSWER_UNFIT,
  ANSWER_WAL_FRAMES,
  CALL_DATABASE,
  CALL_DEADLINE_MS,
  CALL_FIRST,
  CALL_HEADER_BYTES,
  CALL_ID,
  CALL_OP,
  CALL_RESULT_BYTES_MAX,
  CALL_SCOPE,
  CALL_SECOND,
  CALL_TARGET,
  CONTROL_CLOSE_QUERY,
  CONTROL_CREDIT,
  CONTROL_DEFINE,
  CONTROL_RELEASE,
  CONTROL_TIDY,
  type FailureNote,
  type Hello,
  isFrom,
  nextId,
  OUTBOX_BYTES,
  OUTBOX_SLACK_BYTES,
  WORD_BEGUN,
  WORD_CANCEL,
  WORD_OUTBOX_END,
  WORD_OUTBOX_TURN,
  WORD_REVOKED,
  WORD_RUNNING,
  WORDS_BYTES,
} from "./protocol.ts";

/** Calls sent and not answered. Enough to keep an executor busy while answers travel; the rest waits where it can be moved. */
const PIPELINE_CALLS_MAX = 64;
const PIPELINE_BYTES_MAX = 8 * 1024 * 1024;

const WRITE_ARENA_BYTES = 256 * 1024;

export interface PipelineEvents {
  /** It takes calls from now on. */
  ready(pipeline: Pipeline, hello: Hello): void;
  /** It cannot start, and why. */
  unfit(pipeline: Pipeline, message: string): void;
  done(call: Call, flags: number, walFrames: number, body: Buffer): void;
  failed(call: Call, note: FailureNote, flags: number): void;
  /** The call was taken back although it seemed to have begun. */
  revoked(call: Call): void;
  /** Answers have come: more calls may be sent. */
  turn(pipeline: Pipeline): void;
  dead(pipeline: Pipeline, how: string): void;
  /** What it says or has written is no protocol: nothing of it can be believed any more. */
  broken(pipeline: Pipeline, error: unknown): void;
}

/** What an executor had been doing when it died. */
export interface Remains {
  /** Never begun. */
  readonly unbegun: readonly Call[];
  /** Begun and over, their answers lost. */
  readonly finished: readonly Call[];
  /** Running at that moment. */
  readonly running: Call | undefined;
}

export class Pipeline {
  /** Its place among the executors that take calls; -1 for the spare one. */
  slot: number;
  /** Calls for this executor that were not sent yet. */
  readonly waiting = new FairQueue<PoolDatabase, Call>();
  readonly transactions = new Map<number, PoolTransaction>();
  readonly queries = new Map<number, PoolQuery>();
  state: "starting" | "ready" | "dead" = "starting";
  /** It has taken calls at some time. */
  wasReady = false;
  /** Its first call has been running for too long: nothing goes there that can go elsewhere. */
  stalled = false;
  /** A transaction or query has been open for long: others prefer to be elsewhere. */
  avoided = false;
  /** When the first unanswered call became the first. */
  frontSinceMs = 0;
  /** Last time it had something to do. */
  lastUsedMs: number;
  /** Takes no more calls and is replaced when it is idle. */
  isSpent = false;
  /** The server killed it. */
  wasKilled = false;
  openConnections = 0;
  residentBytes = 0;

  readonly #events: PipelineEvents;
  readonly #link: ExecutorLink;
  readonly #words: Int32Array;
  readonly #outbox: Buffer;
  readonly #writer: FrameWriter;
  /** Unanswered calls as a ring. An entry without a call was moved: only its "revoked" is awaited. */
  readonly #ids = new Int32Array(PIPELINE_CALLS_MAX);
  readonly #calls: (Call | undefined)[] = new Array<Call | undefined>(PIPELINE_CALLS_MAX).fill(undefined);
  #head = 0;
  #count = 0;
  #bytes = 0;
  #lastId = 0;
  #lastAnsweredId = 0;
  #revoking = false;
  #flushPlanned = false;
  #background: "no" | "yes" | "refused" = "no";
  /** Calls here that the server wants to end. */
  #stopping = 0;

  constructor(slot: number, nowMs: number, openLink: OpenLink, events: PipelineEvents) {
    this.slot = slot;
    this.lastUsedMs = nowMs;
    this.#events = events;
    this.#link = openLink({
      frame: (buffer, start, end) => this.#frame(buffer, start, end),
      broken: (error) => events.broken(this, error),
      turn: () => events.turn(this),
      exit: (how) => {
        this.state = "dead";
        events.dead(this, how);
      },
    });
    this.#words = new Int32Array(this.#link.page, 0, WORDS_BYTES / Int32Array.BYTES_PER_ELEMENT);
    this.#outbox = Buffer.from(this.#link.page, WORDS_BYTES, OUTBOX_BYTES + OUTBOX_SLACK_BYTES);
    this.#writer = new FrameWriter(WRITE_ARENA_BYTES, (parts) => this.#link.write(parts));
  }

  /** Calls sent and not answered. */
  get count(): number {
    return this.#count;
  }

  get isIdle(): boolean {
    return this.#count === 0 && this.waiting.size === 0 && this.transactions.size === 0 && this.queries.size === 0;
  }

  /** True when one more call may be sent now. */
  get hasRoom(): boolean {
    return (
      this.state === "ready" && !this.#revoking && this.#count < PIPELINE_CALLS_MAX && this.#bytes < PIPELINE_BYTES_MAX
    );
  }

  /** True unless calls would wait here although others have room. */
  get takesCalls(): boolean {
    return this.state === "ready" && !this.#revoking && !this.stalled && !this.isSpent;
  }

  /** How much it has to do, to compare. */
  get load(): number {
    return this.#count + this.waiting.size + this.queries.size + this.transactions.size;
  }

  /** The first unanswered call, the one that runs if any does. */
  get front(): Call | undefined {
    return this.#count === 0 ? undefined : this.#calls[this.#head];
  }

  /** Calls sent, not answered and not taken back, in order. */
  sentCalls(): Call[] {
    const calls: Call[] = [];
    for (let index = 0; index < this.#count; index++) {
      const call = this.#calls[(this.#head + index) % PIPELINE_CALLS_MAX];
      if (call !== undefined) calls.push(call);
    }
    return calls;
  }

  send(call: Call, nowMs: number): void {
    const { database } = call.input;
    if (database.knownBy.get(this) !== database.generation) this.#define(database);
    const id = nextId(this.#lastId);
    this.#lastId = id;
    call.id = id;
    call.pipeline = this;
    call.ranIn = this;
    const at = (this.#head + this.#count) % PIPELINE_CALLS_MAX;
    this.#ids[at] = id;
    this.#calls[at] = call;
    if (this.#count++ === 0) this.frontSinceMs = nowMs;
    this.#bytes += call.bytes;
    this.lastUsedMs = nowMs;
    this.#writeCall(call, id, nowMs);
  }

  /** True while the first call is neither answered nor over: an answer may be on its way. */
  get isFrontUnfinished(): boolean {
    const { front } = this;
    return front !== undefined && (!this.hasBegun(front) || this.isRunning(front.id));
  }

  /** The call is to end: now if it runs, as soon as it begins if not. */
  stop(call: Call): void {
    this.#stopping++;
    if (Atomics.load(this.#words, WORD_CANCEL) === 0 || this.front === call)
      Atomics.store(this.#words, WORD_CANCEL, call.id);
  }

  hasBegun(call: Call): boolean {
    return !isFrom(call.id, nextId(Atomics.load(this.#words, WORD_BEGUN)));
  }

  /** True while the query's rows are being read. */
  isRunning(id: number): boolean {
    return Atomics.load(this.#words, WORD_RUNNING) === id;
  }

  /** Interrupts a query that is being run. */
  interrupt(id: number): void {
    if (this.isRunning(id)) Atomics.store(this.#words, WORD_CANCEL, id);
  }

  /**
   * Takes back every call that was not begun, in order. Until the executor has answered for all it was sent, it gets
   * nothing new.
   */
  revoke(): Call[] {
    if (this.#revoking || this.#count === 0) return [];
    const from = nextId(Atomics.load(this.#words, WORD_BEGUN));
    Atomics.store(this.#words, WORD_REVOKED, from);
    // Whatever began before the executor could see REVOKED is told by BEGUN now.
    const begun = Atomics.load(this.#words, WORD_BEGUN);
    this.#revoking = true;
    return this.#takeFrom(nextId(begun));
  }

  /**
   * Takes answers that lie in the outbox and were not sent: the executor is in the midst of a long statement, or dead.
   * They may come once more, and are then no news.
   */
  collect(): void {
    try {
      this.#collect();
    } catch (error) {
      this.#events.broken(this, error);
    }
  }

  #collect(): void {
    const words = this.#words;
    if (this.#count === 0 || Atomics.load(words, WORD_RUNNING) === this.#ids[this.#head]) return;
    const turn = Atomics.load(words, WORD_OUTBOX_TURN);
    const end = Atomics.load(words, WORD_OUTBOX_END);
    if (end === 0) return;
    if (end > this.#outbox.length) throw new RangeError(`an outbox of ${end} bytes`);
    const answers = Buffer.from(this.#outbox.subarray(0, end));
    if (Atomics.load(words, WORD_OUTBOX_TURN) !== turn) return;
    let at = 0;
    while (at < end && this.#count > 0) {
      const start = at + FRAME_LENGTH_BYTES;
      at = start + answers.readUInt32LE(at);
      if (at > end) throw new RangeError("an answer longer than the outbox");
      // Rows of queries come in their time, or are lost with the executor.
      if ((answers[start + ANSWER_KIND] as number) > ANSWER_REVOKED) continue;
      const id = answers.readInt32LE(start + ANSWER_ID);
      if (id === this.#ids[this.#head]) this.#frame(answers, start, at);
      // Earlier answers are on the socket still.
      else if (!isFrom(this.#lastAnsweredId, id)) break;
    }
    this.#events.turn(this);
  }

  /** After its death: what became of the calls it had. */
  remains(): Remains {
    this.collect();
    const begun = Atomics.load(this.#words, WORD_BEGUN);
    const runningId = Atomics.load(this.#words, WORD_RUNNING);
    const unbegun = this.#takeFrom(nextId(begun));
    const finished: Call[] = [];
    let running: Call | undefined;
    for (; this.#count > 0; this.#pop()) {
      const call = this.#calls[this.#head];
      if (call === undefined) continue;
      if (call.id === runningId) running = call;
      else finished.push(call);
    }
    return { unbegun, finished, running };
  }

  credit(queryId: number, chunks: number): void {
    this.#control(CONTROL_CREDIT, 0, queryId, chunks, undefined);
  }

  closeQuery(queryId: number): void {
    this.#control(CONTROL_CLOSE_QUERY, 0, queryId, 0, undefined);
  }

  tidy(): void {
    if (this.state === "ready") this.#control(CONTROL_TIDY, 0, 0, 0, undefined);
  }

  /** Closes the connections of a database that nobody uses. */
  release(database: PoolDatabase): void {
    if (this.state === "ready") this.#control(CONTROL_RELEASE, database.number, 0, 0, undefined);
  }

  /** Others have the processor first, until the statement that runs is over. */
  goToBackground(): void {
    if (this.#background === "no") this.#background = this.#link.setBackground(true) ? "yes" : "refused";
  }

  kill(): void {
    this.wasKilled = true;
    this.#link.kill();
  }

  end(): void {
    this.#writer.flush();
    this.#link.end();
  }

  #takeFrom(from: number): Call[] {
    const taken: Call[] = [];
    for (let index = 0; index < this.#count; index++) {
      const at = (this.#head + index) % PIPELINE_CALLS_MAX;
      const call = this.#calls[at];
      if (call === undefined || !isFrom(this.#ids[at] as number, from)) continue;
      this.#calls[at] = undefined;
      this.#forget(call);
      taken.push(call);
    }
    return taken;
  }

  #forget(call: Call): void {
    this.#bytes -= call.bytes;
    call.pipeline = undefined;
    if (call.stopCause !== undefined) this.#stopping--;
  }

  #frame(buffer: Buffer, start: number, end: number): void {
    const id = buffer.readInt32LE(start + ANSWER_ID);
    const kind = buffer[start + ANSWER_KIND] as number;
    if (kind <= ANSWER_REVOKED && isFrom(this.#lastAnsweredId, id)) return;
    const body = buffer.subarray(start + ANSWER_HEADER_BYTES, end);
    switch (kind) {
      case ANSWER_DONE: {
        this.#events.done(
          this.#mine(id),
          buffer[start + ANSWER_FLAGS] as number,
          buffer.readUInt32LE(start + ANSWER_WAL_FRAMES),
          body,
        );
        return;
      }
      case ANSWER_FAILED: {
        this.#events.failed(this.#mine(id), noteIn(body), buffer[start + ANSWER_FLAGS] as number);
        return;
      }
      case ANSWER_REVOKED: {
        const call = this.#answered(id);
        if (call !== undefined) this.#events.revoked(call);
        return;
      }
      case ANSWER_CHUNK:
        this.queries.get(id)?.receive(body);
        return;
      case ANSWER_QUERY_END:
        this.#queryOver(id)?.finish(body.readBigUInt64LE(0), body.readBigUInt64LE(8));
        return;
      case ANSWER_QUERY_FAILED:
        this.#queryOver(id)?.fail(noteIn(body));
        return;
      case ANSWER_HELLO:
        this.state = "ready";
        this.wasReady = true;
        this.#events.ready(this, JSON.parse(body.toString("utf8")) as Hello);
        return;
      case ANSWER_STATUS:
        this.openConnections = body.readUInt32LE(0);
        this.residentBytes = Number(body.readBigUInt64LE(4));
        return;
      case ANSWER_UNFIT:
        this.#events.unfit(this, body.toString("utf8"));
        return;
      default:
        throw new RangeError(`an answer of kind ${kind}`);
    }
  }

  /** Takes the first unanswered call, which must have this id. */
  #answered(id: number): Call | undefined {
    if (this.#count === 0 || this.#ids[this.#head] !== id) throw new RangeError(`an answer to call ${id}`);
    const call = this.#pop();
    this.#lastAnsweredId = id;
    if (this.#stopping > 0 || Atomics.load(this.#words, WORD_CANCEL) !== 0) this.#passCancel(id);
    return call;
  }

  /** The same for a call that nobody has taken away. */
  #mine(id: number): Call {
    const call = this.#answered(id);
    if (call === undefined) throw new RangeError(`a result of the revoked call ${id}`);
    return call;
  }

  #pop(): Call | undefined {
    const call = this.#calls[this.#head];
    this.#calls[this.#head] = undefined;
    this.#head = (this.#head + 1) % PIPELINE_CALLS_MAX;
    this.#count--;
    this.frontSinceMs = 0;
    this.stalled = false;
    if (this.#background === "yes") this.isSpent ||= !this.#link.setBackground(false);
    this.#background = "no";
    if (call !== undefined) this.#forget(call);
    if (this.#count === 0 && this.#revoking) {
      this.#revoking = false;
      Atomics.store(this.#words, WORD_REVOKED, 0);
    }
    return call;
  }

  #queryOver(id: number): PoolQuery | undefined {
    const query = this.queries.get(id);
    this.queries.delete(id);
    if (Atomics.load(this.#words, WORD_CANCEL) !== 0) this.#passCancel(id);
    return query;
  }

  /** CANCEL names one call at a time: once that is over, the next one that is to end. */
  #passCancel(answered: number): void {
    const named = Atomics.load(this.#words, WORD_CANCEL);
    if (named !== 0 && named !== answered && !isFrom(answered, named)) return;
    let next = 0;
    for (let index = 0; index < this.#count && this.#stopping > 0; index++) {
      const call = this.#calls[(this.#head + index) % PIPELINE_CALLS_MAX];
      if (call?.stopCause === undefined) continue;
      next = call.id;
      break;
    }
    Atomics.store(this.#words, WORD_CANCEL, next);
  }

  #define(database: PoolDatabase): void {
    database.knownBy.set(this, database.generation);
    this.#control(CONTROL_DEFINE, database.number, 0, 0, Buffer.from(JSON.stringify(database.file)));
  }

  #control(op: number, database: number, target: number, first: number, payload: Buffer | undefined): void {
    const buffer = this.#writer.buffer;
    const at = this.#writer.claim(FRAME_LENGTH_BYTES + CALL_HEADER_BYTES);
    buffer.fill(0, at, at + FRAME_LENGTH_BYTES + CALL_HEADER_BYTES);
    buffer.writeUInt32LE(CALL_HEADER_BYTES + (payload?.length ?? 0), at);
    const header = at + FRAME_LENGTH_BYTES;
    buffer[header + CALL_OP] = op;
    buffer.writeInt32LE(database, header + CALL_DATABASE);
    buffer.writeInt32LE(target, header + CALL_TARGET);
    buffer.writeUInt32LE(first, header + CALL_FIRST);
    if (payload !== undefined) this.#writer.append(payload);
    this.#planFlush();
  }

  #writeCall(call: Call, id: number, nowMs: number): void {
    const { input } = call;
    const buffer = this.#writer.buffer;
    const at = this.#writer.claim(FRAME_LENGTH_BYTES + CALL_HEADER_BYTES);
    buffer.writeUInt32LE(CALL_HEADER_BYTES + call.bytes, at);
    const header = at + FRAME_LENGTH_BYTES;
    buffer.writeInt32LE(id, header + CALL_ID);
    buffer.writeUInt32LE(input.op | (input.flags << 8), header + CALL_OP);
    buffer.writeInt32LE(input.database.number, header + CALL_DATABASE);
    buffer.writeUInt32LE(input.scope, header + CALL_SCOPE);
    buffer.writeInt32LE(input.target, header + CALL_TARGET);
    buffer.writeInt32LE(Math.min(0x7fffffff, Math.ceil(input.deadlineAtMs - nowMs)), header + CALL_DEADLINE_MS);
    buffer.writeUInt32LE(input.resultBytesMax, header + CALL_RESULT_BYTES_MAX);
    buffer.writeUInt32LE(input.first, header + CALL_FIRST);
    buffer.writeUInt32LE(input.second, header + CALL_SECOND);
    if (input.head !== undefined) this.#writer.append(input.head);
    this.#writer.append(input.payload);
    this.#planFlush();
  }

  #planFlush(): void {
    if (this.#flushPlanned) return;
    this.#flushPlanned = true;
    setImmediate(() => {
      this.#flushPlanned = false;
      this.#writer.flush();
    });
  }
}

function noteIn(body: Buffer): FailureNote {
  return JSON.parse(body.toString("utf8")) as FailureNote;
}
