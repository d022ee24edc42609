/** A client that counts the rows of a streamed Query, a process of its own; it walks over the messages without decoding values. */
import { Http2Client, prepareRequest } from "./http2-client.ts";
import { serveQuestions } from "./processes.ts";

export interface CountQuestion {
  readonly port: number;
  readonly path: string;
  /** A gRPC frame in base64. */
  readonly frame: string;
}

export interface CountAnswer {
  readonly ms: number;
  /** In batches; equal to the summary's count or the call rejects. */
  readonly rows: number;
  readonly messages: number;
  readonly bytes: number;
}

const tagRowBatch = 0x12;
const tagColumnBatch = 0x1a;
const tagSummary = 0x22;
const tagFirst = 0x08;
const tagFirstBytes = 0x0a;

class Counter {
  rows = 0;
  messages = 0;
  bytes = 0;
  summaryRows: number | undefined;
  #message: Buffer = Buffer.allocUnsafe(1 << 20);
  #have = 0;
  #at = 0;

  /** Takes bytes of the body; they end anywhere. */
  take(bytes: Buffer): void {
    this.bytes += bytes.length;
    if (this.#have + bytes.length > this.#message.length) {
      const larger = Buffer.allocUnsafe((this.#have + bytes.length) * 2);
      this.#message.copy(larger, 0, 0, this.#have);
      this.#message = larger;
    }
    bytes.copy(this.#message, this.#have);
    this.#have += bytes.length;
    let start = 0;
    while (this.#have - start >= 5) {
      const end = start + 5 + this.#message.readUInt32BE(start + 1);
      if (end > this.#have) break;
      this.#count(start + 5, end);
      start = end;
    }
    this.#message.copyWithin(0, start, this.#have);
    this.#have -= start;
  }

  get cut(): boolean {
    return this.#have > 0;
  }

  #count(start: number, end: number): void {
    this.messages++;
    this.#at = start;
    if (start === end) return;
    const tag = this.#message[this.#at++];
    const length = this.#varint();
    const inner = this.#at + length;
    if (inner !== end) throw new Error("more than one field in a message of the stream");
    if (tag === tagRowBatch) {
      const bytes = this.#message;
      while (this.#at < end) {
        if (bytes[this.#at++] !== tagFirstBytes) throw new Error("not a row");
        const rowBytes = this.#varint();
        this.#at += rowBytes;
        this.rows++;
      }
    } else if (tag === tagColumnBatch) {
      if (this.#message[this.#at++] !== tagFirst) throw new Error("no row count");
      this.rows += this.#varint();
    } else if (tag === tagSummary) {
      if (this.#message[this.#at++] !== tagFirst) throw new Error("no row count");
      this.summaryRows = this.#varint();
    }
  }

  #varint(): number {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = this.#message[this.#at++] ?? 0;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 128;
    }
  }
}

function count(question: CountQuestion): Promise<CountAnswer> {
  return new Promise((resolve, reject) => {
    const counter = new Counter();
    const client = new Http2Client({ port: question.port, windowBytes: 1 << 24, onFailure: reject });
    const request = prepareRequest(question.path, question.port, Buffer.from(question.frame, "base64"));
    const startedAt = performance.now();
    client.send(request, {
      data: (bytes) => counter.take(bytes),
      end(trailers) {
        const ms = performance.now() - startedAt;
        client.close();
        if (trailers === undefined || counter.cut || counter.summaryRows !== counter.rows) {
          reject(new Error(`the stream was cut after ${counter.rows} rows`));
        } else resolve({ ms, rows: counter.rows, messages: counter.messages, bytes: counter.bytes });
      },
    });
  });
}

serveQuestions<CountQuestion>({}, count);
