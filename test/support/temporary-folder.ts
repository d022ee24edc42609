/** Fresh folders that are removed when the tests of a file are over. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";
import { storagePlaces } from "../../src/settings/places.ts";
import { loadSettings } from "../../src/settings/settings.ts";

/** Call once at the top of a file; the returned function makes a new empty folder each time. */
export function temporaryFolders(): () => string {
  const paths: string[] = [];
  afterAll(() => {
    for (const path of paths) removeFolder(path);
  });
  return () => {
    const path = mkdtempSync(join(tmpdir(), "persisto-test-"));
    paths.push(path);
    return path;
  };
}

/** Removes a folder, and the memory stage of the server that had its storage there. */
export function removeFolder(path: string): void {
  const settings = loadSettings({ STORAGE_LOCAL_DIRECTORY_PATH: join(path, "storage") });
  for (const each of [path, storagePlaces(settings).memoryDirectoryPath])
    rmSync(each, { recursive: true, force: true });
}
