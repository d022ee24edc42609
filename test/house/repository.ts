/** The repository's own files, for tests about them. */
import { readdirSync, readFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";

export const root = resolve(import.meta.dirname, "..", "..");

const notOurs = new Set(["node_modules", "dist", "build", "storage", ".git"]);

/** Paths of our files under a folder of the repository that end in one of the given ways, relative to the root. */
export function files(folder: string, ...endings: string[]): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = relative(root, join(root, folder, entry.name));
    if (entry.isDirectory()) return notOurs.has(entry.name) ? [] : files(path, ...endings);
    return endings.some((ending) => entry.name.endsWith(ending)) ? [path] : [];
  });
}

export function read(path: string): string {
  return readFileSync(join(root, path), "utf8");
}

/** Places of a pattern in the given files, as `path:line`; lines that `except` allows are left out. */
export function places(
  paths: readonly string[],
  pattern: RegExp,
  except: (path: string, line: string) => boolean = () => false,
) {
  return paths.flatMap((path) =>
    read(path)
      .split("\n")
      .flatMap((line, index) =>
        pattern.test(line) && !except(path, line) ? [`${path}:${index + 1}: ${line.trim()}`] : [],
      ),
  );
}
