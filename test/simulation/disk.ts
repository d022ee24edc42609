/**
 * A machine's files in a simulation. They are real files in a folder, because SQLite works on them, but every operation of
 * the engine runs at once and in order, so that runs repeat. Beside them it is known what is on the disk for good:
 *
 * - bytes of a file as they were at its last flush;
 * - names of a folder as they were at its last flush, and the changes since then, in order.
 *
 * When the machine dies, each 512 bytes of a file are those flushed or those written later, by chance; its length is any
 * that it had in between; and of a folder's later changes the first few have happened. What lies under `memory` is gone.
 *
 * SQLite's own flushes are not seen, but its order is known (synchronous=NORMAL): it flushes a WAL that starts over after its
 * header and before its first frame, and its name with it; a checkpoint flushes the WAL before it copies and the database
 * after it. `checkpointing` and `checkpointed` tell of those; in between the copied pages may be there or not.
 */
import {
  closeSync,
  copyFileSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join, relative, sep } from "node:path";
import type { FileSystem, OpenFile, OpenMode, Space } from "../../src/files/file-system.ts";
import type { Random } from "./random.ts";

/** What goes wrong with the files. */
export type DiskFault = "full" | "input_output";

export interface DiskFaults {
  /** Asked for each operation that writes, or flushes. */
  next(operation: "write" | "flush", path: string): DiskFault | undefined;
}

interface FileNode {
  readonly kind: "file";
  /** On the disk for good. Empty for what was never flushed. */
  flushed: Buffer;
  /** The WAL as a checkpoint that runs has flushed it. */
  checkpointed: Buffer | undefined;
  /** The bytes of a file without a name, for the case that its name comes back. */
  ghost: Buffer | undefined;
}

interface FolderNode {
  readonly kind: "folder";
  readonly names: Map<string, Node>;
  durable: Map<string, Node>;
  /** Since the last flush, each as a whole. */
  pending: (readonly (readonly [name: string, node: Node | undefined])[])[];
}

type Node = FileNode | FolderNode;

const blockBytes = 512;
const walMagic = 0x377f0682;
const openFlags: Readonly<Record<OpenMode, string>> = { read: "r", write: "r+", make: "w+", log: "r+" };

const newFolder = (): FolderNode => ({ kind: "folder", names: new Map(), durable: new Map(), pending: [] });
const newFile = (): FileNode => ({ kind: "file", flushed: Buffer.alloc(0), checkpointed: undefined, ghost: undefined });

/** The disk and the tmpfs of one machine. */
export class SimulatedDisk {
  readonly #base: string;
  readonly #random: Random;
  #tree = newFolder();
  #generation = 0;
  /** What the file system says it has. */
  freeBytes = 64 * 1024 * 1024 * 1024;
  /** For the variant that must be caught: flushes answer and do nothing. */
  flushesNothing = false;
  faults: DiskFaults | undefined;

  /** `base`: an empty folder for its files. */
  constructor(base: string, random: Random) {
    this.#base = base;
    this.#random = random;
    this.#make();
  }

  /** Changes with every death: what a dead process still has open is no file of the living one. */
  get root(): string {
    return join(this.#base, String(this.#generation));
  }

  get localPath(): string {
    return join(this.root, "local");
  }

  get memoryPath(): string {
    return join(this.root, "memory");
  }

  /** All files of the dead one's life, for nobody is left to read them. */
  forgetOld(): void {
    for (const name of readdirSync(this.#base)) {
      if (name !== String(this.#generation)) rmSync(join(this.#base, name), { recursive: true, force: true });
    }
  }

  /** A process dies: what it wrote is there, in the kernel. */
  processDies(): void {
    const from = this.root;
    this.#adoptAll();
    this.#generation++;
    copyTree(from, this.root);
  }

  /** The machine loses its power. */
  machineDies(): void {
    const from = this.root;
    this.#adoptAll();
    this.#generation++;
    const local = this.#tree.names.get("local");
    this.#tree = newFolder();
    this.#make();
    if (local?.kind !== "folder") throw new Error("a disk has its local folder");
    const kept = this.#survive(local, join(from, "local"), this.localPath);
    this.#tree.names.set("local", kept);
    this.#tree.durable.set("local", kept);
  }

  /** Everything is gone. */
  isLost(): void {
    this.#generation++;
    this.#tree = newFolder();
    this.#make();
  }

  /** A checkpoint of a database begins. */
  checkpointing(databasePath: string): void {
    const wal = this.#find(`${databasePath}-wal`);
    if (wal?.kind === "file") wal.checkpointed = readFileSync(`${databasePath}-wal`);
  }

  /** A checkpoint has ended well, with so many frames copied. */
  checkpointed(databasePath: string, frameCount: number): void {
    const wal = this.#find(`${databasePath}-wal`);
    if (wal?.kind === "file" && wal.checkpointed !== undefined) {
      wal.flushed = withFrames(wal.checkpointed, readFileSync(`${databasePath}-wal`), frameCount);
      wal.checkpointed = undefined;
    }
    const database = this.#find(databasePath);
    if (database?.kind === "file") database.flushed = readFileSync(databasePath);
  }

  /** The catalog is flushed by SQLite when it is opened and when it is closed in good order, and not in between. */
  catalogFlushed(): void {
    const local = this.#folder(this.localPath);
    this.#adopt(local, this.localPath);
    for (const [name, node] of local.names) {
      if (!name.startsWith("catalog.sqlite") || node.kind !== "file") continue;
      node.flushed = readFileSync(join(this.localPath, name));
      local.durable.set(name, node);
    }
  }

  /** The files as one process sees them, until it dies: from then on nothing answers. */
  mount(isDead: () => boolean): FileSystem {
    const never = new Promise<never>(() => undefined);
    const run = <T>(work: () => T): Promise<T> => {
      if (isDead()) return never;
      try {
        return Promise.resolve(work());
      } catch (error) {
        return Promise.reject(error);
      }
    };
    const descriptors = new Map<number, FileNode>();
    const close = (descriptor: number) => {
      descriptors.delete(descriptor);
      closeSync(descriptor);
    };
    return {
      makeFolder: (path) => run(() => this.#makeFolder(path)),
      list: (path) => run(() => unlessMissing(() => readdirSync(path)) ?? []),
      read: (path) => run(() => unlessMissing(() => readFileSync(path))),
      readStart: (path, byteCount) => run(() => unlessMissing(() => readFileSync(path).subarray(0, byteCount))),
      writeFlushed: (path, bytes) =>
        run(() => {
          const node = this.#makeFile(path);
          this.#fail("write", path);
          writeFileSync(path, bytes);
          this.#flush(node, path, () => Buffer.from(bytes));
        }),
      rename: (from, to) => run(() => this.#rename(from, to)),
      remove: (path) => run(() => this.#remove(path)),
      flushFolder: (path) =>
        run(() => {
          const node = this.#folder(path);
          this.#adopt(node, path);
          this.#fail("flush", path);
          if (this.flushesNothing) return;
          node.durable = new Map(node.names);
          node.pending = [];
        }),
      createTimeMs: (path) =>
        run(() => (statSync(path, { throwIfNoEntry: false }) === undefined ? undefined : 1_700_000_000_000)),
      sizeBytes: (path) => (isDead() ? 0 : (statSync(path, { throwIfNoEntry: false })?.size ?? 0)),
      openForFlush: (path) =>
        run(() => {
          const descriptor = openSync(path, "r+");
          descriptors.set(descriptor, this.#file(path));
          return descriptor;
        }),
      // Takes a turn, as all that waits for a device does: others come meanwhile, and share the next one.
      flush: async (descriptor) => {
        await new Promise(setImmediate);
        return run(() => {
          const node = descriptors.get(descriptor);
          if (node === undefined) throw new Error("a flush of what is not open");
          this.#flush(node, "", () => readDescriptor(descriptor));
        });
      },
      readNow: (descriptor, offsetBytes, target) => readSync(descriptor, target, 0, target.length, offsetBytes),
      isLinked: (descriptor) => fstatSync(descriptor).nlink > 0,
      close,
      openFile: (path, mode) => run(() => this.#open(path, mode, run)),
      space: (path) => run(() => this.#space(path)),
    };
  }

  #make(): void {
    for (const name of ["local", "memory"]) {
      mkdirSync(join(this.root, name), { recursive: true });
      const folder = newFolder();
      this.#tree.names.set(name, folder);
      this.#tree.durable.set(name, folder);
    }
  }

  #space(path: string): Space {
    return {
      totalBytes: 64 * 1024 * 1024 * 1024,
      freeBytes: this.freeBytes,
      isMemory: path.startsWith(this.memoryPath),
    };
  }

  #fail(operation: "write" | "flush", path: string): void {
    const fault = this.faults?.next(operation, path);
    if (fault === undefined) return;
    const code = fault === "full" ? "ENOSPC" : "EIO";
    throw Object.assign(new Error(`${code}: a fault, ${operation} '${path}'`), { code });
  }

  #flush(node: FileNode, path: string, bytes: () => Buffer): void {
    this.#fail("flush", path);
    if (this.flushesNothing) return;
    node.flushed = bytes();
    node.checkpointed = undefined;
  }

  #open(path: string, mode: OpenMode, run: <T>(work: () => T) => Promise<T>): OpenFile {
    const node = mode === "make" || mode === "log" ? this.#makeFile(path) : this.#file(path);
    const descriptor = openSync(path, openFlags[mode]);
    let isOpen = true;
    return {
      sizeBytes: () => run(() => fstatSync(descriptor).size),
      read: (offsetBytes, byteCount) =>
        run(() => {
          const bytes = Buffer.alloc(byteCount);
          return bytes.subarray(0, readSync(descriptor, bytes, 0, byteCount, offsetBytes));
        }),
      write: async (offsetBytes, bytes) => {
        if (mode === "log") await new Promise(setImmediate);
        return run(() => {
          this.#fail("write", path);
          for (let at = 0; at < bytes.length; )
            at += writeSync(descriptor, bytes, at, bytes.length - at, offsetBytes + at);
          if (mode === "log") this.#flush(node, path, () => readDescriptor(descriptor));
        });
      },
      truncate: (sizeBytes) => run(() => ftruncateSync(descriptor, sizeBytes)),
      flush: () => run(() => this.#flush(node, path, () => readDescriptor(descriptor))),
      close: () =>
        run(() => {
          if (isOpen) closeSync(descriptor);
          isOpen = false;
        }),
    };
  }

  #makeFolder(path: string): void {
    mkdirSync(path, { recursive: true });
    let at: FolderNode = this.#tree;
    for (const name of this.#names(path)) {
      let next = at.names.get(name);
      if (next === undefined) {
        next = newFolder();
        at.names.set(name, next);
        at.pending.push([[name, next]]);
      }
      if (next.kind !== "folder") throw new Error(`${path} leads through a file`);
      at = next;
    }
  }

  #makeFile(path: string): FileNode {
    const { folder, name } = this.#place(path);
    const old = folder.names.get(name);
    if (old?.kind === "file") return old;
    writeFileSync(path, "", { flag: "a" });
    const node = newFile();
    folder.names.set(name, node);
    folder.pending.push([[name, node]]);
    return node;
  }

  #rename(from: string, to: string): void {
    const source = this.#place(from);
    const target = this.#place(to);
    const node = this.#find(from);
    const replaced = this.#find(to);
    if (replaced !== undefined) this.#keepGhosts(replaced, to);
    renameSync(from, to);
    if (node === undefined) throw new Error(`${from} is not known`);
    source.folder.names.delete(source.name);
    target.folder.names.set(target.name, node);
    if (source.folder === target.folder) {
      source.folder.pending.push([
        [source.name, undefined],
        [target.name, node],
      ]);
      return;
    }
    // Both or neither is more than a disk promises: the name may be in both folders, and is never in none.
    target.folder.pending.push([[target.name, node]]);
    source.folder.pending.push([[source.name, undefined]]);
  }

  #remove(path: string): void {
    const node = this.#find(path);
    if (node === undefined) return;
    this.#keepGhosts(node, path);
    const { folder, name } = this.#place(path);
    folder.names.delete(name);
    folder.pending.push([[name, undefined]]);
    rmSync(path, { recursive: true, force: true });
  }

  /** Bytes of what loses its name, which a dying machine may bring back. */
  #keepGhosts(node: Node, path: string): void {
    if (node.kind === "file") {
      node.ghost = unlessMissing(() => readFileSync(path));
      return;
    }
    this.#adopt(node, path);
    for (const [name, inner] of node.names) this.#keepGhosts(inner, join(path, name));
  }

  #names(path: string): string[] {
    const names = relative(this.root, path).split(sep);
    if (names[0] === "..") throw new Error(`${path} is outside of the machine`);
    return names.filter((name) => name !== "");
  }

  #place(path: string): { readonly folder: FolderNode; readonly name: string } {
    const names = this.#names(path);
    const name = names.pop() ?? "";
    return { folder: this.#folder(join(this.root, ...names)), name };
  }

  #folder(path: string): FolderNode {
    const node = this.#find(path);
    if (node?.kind !== "folder") throw missing(path);
    return node;
  }

  #file(path: string): FileNode {
    const node = this.#find(path);
    if (node?.kind !== "file") throw missing(path);
    return node;
  }

  #find(path: string): Node | undefined {
    let at: Node = this.#tree;
    let here = this.root;
    for (const name of this.#names(path)) {
      if (at.kind !== "folder") return undefined;
      here = join(here, name);
      at = at.names.get(name) ?? this.#adoptOne(at, name, here) ?? newFile();
      if (at.kind === "file" && statSync(here, { throwIfNoEntry: false }) === undefined) return undefined;
    }
    return at;
  }

  /** What SQLite has made or removed by itself. */
  #adopt(folder: FolderNode, path: string): void {
    const real = new Set(unlessMissing(() => readdirSync(path)) ?? []);
    for (const name of real) if (!folder.names.has(name)) this.#adoptOne(folder, name, join(path, name));
    for (const name of [...folder.names.keys()]) {
      if (real.has(name)) continue;
      folder.names.delete(name);
      folder.pending.push([[name, undefined]]);
    }
  }

  #adoptOne(folder: FolderNode, name: string, path: string): Node | undefined {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found === undefined) return undefined;
    if (found.isDirectory()) throw new Error(`${path} was not made by the file system`);
    const node = newFile();
    folder.names.set(name, node);
    // The name of a WAL is flushed with its header.
    if (name.endsWith("-wal")) folder.durable.set(name, node);
    else folder.pending.push([[name, node]]);
    return node;
  }

  #adoptAll(folder: FolderNode = this.#tree, path: string = this.root): void {
    if (folder !== this.#tree) this.#adopt(folder, path);
    for (const [name, node] of folder.names) if (node.kind === "folder") this.#adoptAll(node, join(path, name));
  }

  #survive(folder: FolderNode, from: string, to: string): FolderNode {
    mkdirSync(to, { recursive: true });
    const names = new Map(folder.durable);
    const count = this.#random.below(folder.pending.length + 1);
    for (const change of folder.pending.slice(0, count)) {
      for (const [name, node] of change) {
        if (node === undefined) names.delete(name);
        else names.set(name, node);
      }
    }
    const kept = newFolder();
    for (const [name, node] of names) {
      const path = join(to, name);
      const survivor =
        node.kind === "folder"
          ? this.#survive(node, join(from, name), path)
          : this.#surviving(node, folder, from, name);
      if (survivor.kind === "file") writeFileSync(path, survivor.flushed);
      kept.names.set(name, survivor);
      kept.durable.set(name, survivor);
    }
    return kept;
  }

  #surviving(node: FileNode, folder: FolderNode, from: string, name: string): FileNode {
    // By its present name, which may be another than the one that survives.
    const present = [...folder.names].find(([, other]) => other === node)?.[0];
    const now =
      (present === undefined ? node.ghost : unlessMissing(() => readFileSync(join(from, present)))) ??
      node.ghost ??
      node.flushed;
    const base = name.endsWith("-wal") ? this.#walBase(node, folder, from, name, now) : node.flushed;
    return { ...newFile(), flushed: mixed(base, now, this.#random) };
  }

  /** What of a WAL is flushed by what SQLite does by itself. */
  #walBase(node: FileNode, folder: FolderNode, from: string, name: string, now: Buffer): Buffer {
    let base = node.flushed;
    const database = name.slice(0, -"-wal".length);
    const databaseNode = folder.names.get(database);
    if (node.checkpointed !== undefined && databaseNode?.kind === "file") {
      const bytes = unlessMissing(() => readFileSync(join(from, database)));
      // It has copied something, and has flushed that before: how much is not known.
      if (bytes !== undefined && !bytes.equals(databaseNode.flushed)) base = now;
    }
    if (now.length < 32 || now.readUInt32BE(0) >>> 1 !== walMagic >>> 1) return base;
    if (base.length >= 32 && base.subarray(0, 32).equals(now.subarray(0, 32))) return base;
    const started = Buffer.alloc(Math.max(32, base.length));
    base.copy(started);
    now.copy(started, 0, 0, 32);
    return started;
  }
}

/** A WAL of which so many frames are flushed besides what was flushed before. */
function withFrames(before: Buffer, now: Buffer, frameCount: number): Buffer {
  // Emptied, or begun anew: nothing of the life that was copied matters.
  if (now.length < 32 || !before.subarray(0, 32).equals(now.subarray(0, 32))) return now.length === 0 ? now : before;
  const byteCount = Math.min(now.length, 32 + frameCount * (24 + now.readUInt32BE(8)));
  return Buffer.concat([now.subarray(0, byteCount), before.subarray(byteCount)]);
}

function mixed(flushed: Buffer, now: Buffer, random: Random): Buffer {
  if (flushed.equals(now)) return flushed;
  const luck = random.below(3);
  if (luck === 0) return Buffer.from(now);
  if (luck === 1) return Buffer.from(flushed);
  const shorter = Math.min(flushed.length, now.length);
  const longer = Math.max(flushed.length, now.length);
  const after = Buffer.alloc(shorter + random.below(longer - shorter + 1));
  for (let at = 0; at < after.length; at += blockBytes) {
    const source = random.below(2) === 0 ? now : flushed;
    if (at < source.length) source.copy(after, at, at, Math.min(at + blockBytes, after.length));
  }
  return after;
}

function readDescriptor(descriptor: number): Buffer {
  const bytes = Buffer.alloc(fstatSync(descriptor).size);
  readSync(descriptor, bytes, 0, bytes.length, 0);
  return bytes;
}

function copyTree(from: string, to: string): void {
  mkdirSync(to, { recursive: true });
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) copyTree(source, target);
    else copyFileSync(source, target);
  }
}

function missing(path: string): Error {
  return Object.assign(new Error(`ENOENT: no such file or directory, '${path}'`), { code: "ENOENT" });
}

function unlessMissing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
