/** Fresh folders that are removed when the tests of a file are over. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";

/** Call once at the top of a file; the returned function makes a new empty folder each time. */
export function temporaryFolders(): () => string {
  const paths: string[] = [];
  afterAll(() => {
    for (const path of paths) rmSync(path, { recursive: true, force: true });
  });
  return () => {
    const path = mkdtempSync(join(tmpdir(), "persisto-test-"));
    paths.push(path);
    return path;
  };
}
