/**
 * Files exchanged with the reference implementation, of the version that writes frames and of the one that writes blocks.
 * Both are built by Go; where Go or its modules are missing the tests are skipped, and say so.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { compactLtx } from "../../src/ltx/compact.ts";
import {
  collect,
  type Decoded,
  decode,
  encode,
  incrementFacts,
  ModelDatabase,
  pageSizes,
  snapshotFacts,
} from "./support.ts";

const source = join(import.meta.dirname, "reference");
const folder = mkdtempSync(join(tmpdir(), "persisto-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Builds the command; the reason why not, when it cannot be. */
function build(name: string, modFile: string): { program: string; reason: string | undefined } {
  const program = join(folder, name);
  const args = ["build", `-modfile=${modFile}`, "-buildvcs=false", "-o", program, "."];
  const { error, status, stderr } = spawnSync("go", args, { cwd: source, encoding: "utf8", timeout: 120_000 });
  if (error !== undefined) return { program, reason: "Go is not installed" };
  return { program, reason: status === 0 ? undefined : `Go cannot build it: ${stderr.trim().split("\n").at(-1)}` };
}

const versions = [
  { version: "0.5.1", writes: "frame" as const, ...build("frames", "frames.mod") },
  { version: "0.5.3", writes: "block" as const, ...build("blocks", "go.mod") },
];

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** What `show` prints of a file, made from what was decoded here. */
function shown({ header, trailer, pages }: Decoded) {
  const hex = (value: bigint) => value.toString(16).padStart(16, "0");
  return {
    minTxid: hex(header.minTxid),
    maxTxid: hex(header.maxTxid),
    commit: header.commit,
    pageSize: header.pageSize,
    timestampMs: header.timestampMs,
    walOffset: header.walOffset,
    walBytes: header.walBytes,
    fileChecksum: hex(trailer.fileChecksum),
    pages: pages.map(({ number, bytes }) => ({ number, hash: sha256(bytes) })),
  };
}

/** A database that grows, shrinks and grows again, one file for each state. */
async function history(pageSize: number, encoding: "frame" | "block") {
  const model = new ModelDatabase(pageSize);
  const steps: [number, number[]][] = [
    [7, []],
    [12, [1, 3]],
    [4, [2]],
    [9, [1, 4]],
    [9, []],
  ];
  const files: Buffer[] = [];
  const states: Buffer[] = [];
  for (const [index, [commit, changed]] of steps.entries()) {
    const pages = model.apply(commit, changed, index);
    const wal = { walOffset: 32 + index, walBytes: 1000, walSalt1: 5, walSalt2: index };
    const facts = index === 0 ? snapshotFacts(pageSize, commit) : incrementFacts(pageSize, commit, BigInt(index + 1));
    files.push(await encode({ ...facts, ...wal }, pages, { encoding }));
    states.push(model.bytes());
  }
  return { files, states };
}

describe.each(versions)("the reference implementation $version", ({ writes, program, reason, version }) => {
  const run = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(program, args, { encoding: "utf8", timeout: 60_000 });
    if (status !== 0) throw new Error(stderr);
    return stdout;
  };
  const store = (name: string, bytes: Uint8Array) => {
    const path = join(folder, `${version}-${name}`);
    writeFileSync(path, bytes);
    return path;
  };
  const encodings = writes === "frame" ? (["frame"] as const) : (["frame", "block"] as const);

  it("is there, or said to be missing", (context) => {
    if (reason !== undefined) context.skip(`not tried: ${reason}`);
  });

  it.skipIf(reason !== undefined).each(pageSizes)("exchanges files of %d-byte pages both ways", async (pageSize) => {
    for (const encoding of encodings) {
      const { files, states } = await history(pageSize, encoding);
      const paths = files.map((file, index) => store(`${index}.ltx`, file));
      for (const [index, path] of paths.entries()) {
        const ours = await decode([files[index] as Buffer]);
        expect(JSON.parse(run("show", path))).toEqual(shown(ours));
        const recoded = `${path}-again`;
        run("recode", recoded, path);
        const theirs = await decode([readFileSync(recoded)]);
        expect(theirs.header).toEqual(ours.header);
        expect(theirs.pages.map(({ bytes }) => sha256(bytes))).toEqual(ours.pages.map(({ bytes }) => sha256(bytes)));
        const restored = join(folder, "restored.db");
        run("restore", restored, ...paths.slice(0, index + 1));
        expect(readFileSync(restored).equals(states[index] as Buffer)).toBe(true);
      }
      const merged = join(folder, "merged.ltx");
      run("compact", merged, ...paths);
      const theirs = await decode([readFileSync(merged)]);
      const { bytes } = await collect(
        compactLtx(
          files.map((file) => [file]),
          { encoding },
        ),
      );
      const ours = await decode([bytes]);
      expect(ours.header).toEqual(theirs.header);
      expect(shown(ours).pages).toEqual(shown(theirs).pages);
      expect(JSON.parse(run("show", store("merged.ltx", bytes)))).toEqual(shown(ours));
    }
  });
});
