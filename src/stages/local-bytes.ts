/** Local files as what the log and the object store read from and write to. */
import type { Clock } from "../clock.ts";
import type { FileSystem, OpenFile } from "../files/file-system.ts";
import type { ObjectSource } from "../objects/object-store.ts";
import { checkStageCall } from "./calls.ts";
import type { StageCall } from "./stage.ts";

const readBytes = 256 * 1024;

/** A file from its start to its end. */
export async function* readFile(
  fileSystem: FileSystem,
  path: string,
  clock: Clock,
  call: StageCall,
): AsyncGenerator<Uint8Array, void, undefined> {
  const file = await fileSystem.openFile(path, "read");
  try {
    for (let offset = 0; ; ) {
      checkStageCall(clock, call);
      const bytes = await file.read(offset, readBytes);
      if (bytes.length === 0) return;
      offset += bytes.length;
      yield bytes;
    }
  } finally {
    await file.close();
  }
}

/** A file as the body of a put. It stays open: close it when the put is over. */
export function fileSource(file: OpenFile, sizeBytes: number): ObjectSource {
  return { sizeBytes, read: (offsetBytes, byteCount) => file.read(offsetBytes, byteCount) };
}
